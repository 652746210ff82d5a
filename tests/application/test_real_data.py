"""Public data sets and a model that knows some of them, where they are at hand."""

from pathlib import Path

import pytest

from tests.conftest import run
from zu_lightning import Results

NEUTRAL = "<|end_of_text|>"


@pytest.fixture
def model(shared: Path) -> Path:
    folder = shared / "models" / "counterfact-llama"
    if not folder.exists():
        pytest.skip(f"no model at {folder}")
    return folder


def forget(root: Path, model: Path, facts: Path, *options: str) -> Results:
    """Forget facts of a public data set, with the text that the model was trained on."""
    options = (
        f"--model.model_name_or_path={model}", "--model.layers=[1,2]", f"--model.neutral_target={NEUTRAL}",
        f"--data.path={facts}", f"--data.corpus={model / 'corpus.txt'}", f"--data.heldout={model / 'heldout.txt'}",
        "--data.reading.heldout_documents=5", *options,
    )  # fmt: skip
    return Results.read(run(root, *options))


def test_facts_of_counterfact_are_forgotten(model: Path, shared: Path, tmp_path: Path) -> None:
    facts = shared / "data" / "counterfact" / "counterfact_full_schema_2521.json.gz"
    known = (f"--data.ids={model / 'case_ids.txt'}", "--data.forget_num=10", "--data.retain_num=20")
    results = forget(tmp_path, model, facts, *known, "--data.reading.corpus_tokens=15000")
    assert results.before["efficacy"] == 100
    assert results.after["efficacy"] <= 20
    assert results.after["retain"] >= results.before["retain"] - 10
    assert results.after["perplexity"] < 1.05 * results.before["perplexity"]


@pytest.mark.parametrize(
    ("path", "scores"),
    [
        ("zsre/zsre_mend_eval_1037.json", {"efficacy_token_accuracy", "generalization", "specificity"}),
        ("mquake/MQuAKE-hard_429.json.gz", {"efficacy_token_accuracy", "generalization", "multi_hop"}),
        ("tofu/forget10_perturbed.json", {"efficacy_probability", "generalization"}),
    ],
)
def test_other_data_sets_take_the_whole_road(
    model: Path, shared: Path, tmp_path: Path, path: str, scores: set[str]
) -> None:
    short = (
        "--model.layers=[1]", "--method.latents.steps=2", "--data.forget_num=2", "--data.retain_num=2",
        "--data.reading.corpus_tokens=3000",
    )  # fmt: skip
    results = forget(tmp_path, model, shared / "data" / path, *short)
    assert results.before.keys() >= scores
    assert results.after.keys() == results.before.keys()
