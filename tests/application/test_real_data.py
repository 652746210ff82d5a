"""Public data sets and a model that knows some of them, where they are at hand."""

import json
from pathlib import Path

import pytest

import train
from tests.conftest import ROOT

SHORT = ("--data.retain_num=5", "--data.corpus_tokens=3000")
NEUTRAL = "<|end_of_text|>"


@pytest.fixture
def model(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    folder = shared / "models" / "counterfact-llama"
    if not folder.exists():
        pytest.skip(f"no model at {folder}")
    return folder


def run(root: Path, model: Path, facts: Path, *arguments: str) -> dict[str, dict[str, float]]:
    train.main([
        "fit", "--config=configs/demo.yaml", f"--model.model_name_or_path={model}", "--model.layers=[1,2]",
        f"--model.neutral_target={NEUTRAL}", f"--data.path={facts}", f"--data.corpus={model / 'corpus.txt'}",
        f"--data.heldout={model / 'heldout.txt'}", "--data.corpus_tokens=15000", "--data.heldout_documents=5",
        "--data.retain_num=20", f"--trainer.default_root_dir={root}", *arguments,
    ])  # fmt: skip
    metrics: dict[str, dict[str, float]] = json.loads((root / "lightning_logs/version_0/metrics.json").read_text())
    return metrics


def test_facts_of_counterfact_are_forgotten(model: Path, shared: Path, tmp_path: Path) -> None:
    facts = shared / "data" / "counterfact" / "counterfact_full_schema_2521.json.gz"
    metrics = run(tmp_path, model, facts, f"--data.ids={model / 'case_ids.txt'}", "--data.forget_num=10")
    before, after = metrics["before"], metrics["after"]
    assert before["efficacy"] == 100
    assert after["efficacy"] <= 20
    assert after["retain"] >= before["retain"] - 10
    assert after["perplexity"] < 1.05 * before["perplexity"]


@pytest.mark.parametrize(
    ("path", "figures"),
    [
        ("zsre/zsre_mend_eval_1037.json", {"efficacy_token_accuracy", "generalization", "specificity"}),
        ("mquake/MQuAKE-hard_429.json.gz", {"efficacy_token_accuracy", "generalization", "multi_hop"}),
        ("tofu/forget10_perturbed.json", {"efficacy_probability", "generalization"}),
    ],
)
def test_other_data_sets_take_the_whole_road(
    model: Path, shared: Path, tmp_path: Path, path: str, figures: set[str]
) -> None:
    metrics = run(tmp_path, model, shared / "data" / path, "--data.forget_num=2", "--model.latents.steps=2", *SHORT)
    assert metrics["before"].keys() >= figures
    assert metrics["after"].keys() == metrics["before"].keys()
