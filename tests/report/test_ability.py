"""``downstream.json``, the table, and the picture."""

import math
from pathlib import Path

import pytest

from zu_lightning import InputError
from zu_lightning.evaluation.ability import AbilitySet, Question, QuestionSet, TextSet
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report.ability import (
    FILE_NAME,
    TaskResult,
    downstream_table,
    draw_abilities,
    draw_downstream,
    read_downstream,
    task_results,
    write_downstream,
)
from zu_lightning.report.pictures import pictures_in, save_picture

RESULTS = {
    "sst2": TaskResult("SST-2", "accuracy", 200, 51.5, TaskScore(81.25, 2.5), TaskScore(79.5, 2.75)),
    "mmlu": TaskResult("MMLU", "accuracy", 1, 100.0, None, TaskScore(100.0, math.nan)),
    "wikitext": TaskResult(
        "WikiText", "word_perplexity", 62, None, TaskScore(22.0, 0.5), TaskScore(math.nan, math.nan)
    ),
}


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = write_downstream(RESULTS, tmp_path)
    assert path.name == FILE_NAME
    assert "NaN" not in path.read_text()
    read = read_downstream(tmp_path)
    assert repr(read) == repr(RESULTS), "NaN is not equal to itself"
    assert list(read) == list(RESULTS)


def test_a_run_without_results_has_none_and_another_schema_is_refused(tmp_path: Path) -> None:
    assert read_downstream(tmp_path) == {}
    for content in ("[", "[]", '{"sst2": {"before": 3}}'):
        (tmp_path / FILE_NAME).write_text(content)
        with pytest.raises(InputError, match=r"downstream\.json follows another schema"):
            read_downstream(tmp_path)


def test_scores_come_to_the_tasks_that_asked() -> None:
    sets: dict[str, AbilitySet] = {
        "a": QuestionSet("rte", "RTE", (Question("?", ("x", "y"), 1),)),
        "b": TextSet(("one", "two")),
    }
    results = task_results(sets, {"a": TaskScore(1, 2)}, {"b": TaskScore(3, 4)})
    assert results == {
        "rte": TaskResult("RTE", "accuracy", 1, 100, TaskScore(1, 2), None),
        "wikitext": TaskResult("WikiText", "word_perplexity", 2, None, None, TaskScore(3, 4)),
    }


def test_the_table_shows_standard_errors() -> None:
    lines = downstream_table(RESULTS).splitlines()
    assert lines[2].split() == ["SST-2", "200", "81.25", "±", "2.5", "79.5", "±", "2.8", "51.5"]
    assert lines[3].split() == ["MMLU", "1", "-", "100", "100.0"]
    assert lines[4].split() == ["WikiText", "62", "22", "±", "0.5", "nan", "-"]


def test_the_picture_says_what_the_bars_are(tmp_path: Path) -> None:
    assert save_picture(draw_downstream(RESULTS), tmp_path).read_bytes().startswith(b"\x89PNG")
    (picture,) = pictures_in(tmp_path)
    assert (picture.name, picture.title) == ("downstream", "General ability before and after")
    assert "SST-2 (accuracy (%), 200 items): before 81.25 ± 2.5, after 79.5 ± 2.8;" in picture.description
    assert "perplexity per word" in picture.svg
    assert "most frequent answer" in picture.svg


def test_several_models_stand_side_by_side(tmp_path: Path) -> None:
    models = {
        name: {"sst2": TaskScore(value, 2.0)} for name, value in (("before", 80.0), ("MEMIT", 75.0), ("NPO", 60.0))
    }
    save_picture(draw_abilities({"sst2": RESULTS["sst2"]}, models, "all", "All methods"), tmp_path)
    (picture,) = pictures_in(tmp_path)
    assert "before 80 ± 2, MEMIT 75 ± 2, NPO 60 ± 2" in picture.description
    assert "MEMIT</text>" in picture.svg
