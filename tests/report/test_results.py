"""The schema of ``metrics.json``: what is written can be read, and nothing else."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zu_lightning import InputError, LayerScores, Results, TargetScores

SCORES = LayerScores(
    residual_before=2.0, residual_after=0.5, zero_term_before=1.0, zero_term_after=0.25, relative_norm=0.125, rank=3,
    stored_error=1e-8,
)  # fmt: skip
RESULTS = Results(
    before={"efficacy": 100.0, "retain": 99.5, "perplexity": 4.125},
    after={"efficacy": 0.0, "retain": 98.0, "perplexity": 4.25},
    facts=3,
    seconds={"load": 1.5},
    peak_memory_gib=0.5,
    model="data/demo/model",
    method={"name": "Memit", "retain_weight": 0.3},
    targets=TargetScores(reachable=100.0, probability=0.9),
    layers={4: SCORES, 11: replace(SCORES, rank=6)},
    forgotten=["a", "b", "ç"],
)
WITHOUT_EDITS = replace(RESULTS, targets=None, layers={}, method={"name": "gradient ascent"})


@pytest.mark.parametrize("results", [RESULTS, WITHOUT_EDITS], ids=["edited layers", "another method"])
def test_what_is_written_is_read_again(results: Results, tmp_path: Path) -> None:
    assert results.write(tmp_path) == tmp_path / "metrics.json"
    assert Results.read(tmp_path) == results
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no metrics\.json that can be read"):
        Results.read(tmp_path)


CONTENT = {
    "an empty file": "",
    "a list": "[]",
    "a missing field": json.dumps({"before": {}, "after": {}, "targets": None, "layers": {}}),
    "an unknown field": None,
    "a layer that is no number": json.dumps({"targets": None, "layers": {"last": {}}}),
}


@pytest.mark.parametrize("case", CONTENT)
def test_another_schema_is_refused(case: str, tmp_path: Path) -> None:
    RESULTS.write(tmp_path)
    path = tmp_path / "metrics.json"
    content = CONTENT[case]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"new": 1}) if content is None else content)
    with pytest.raises(InputError, match=r"its metrics\.json follows another schema"):
        Results.read(tmp_path)
