"""Measurements without Lightning, as in a notebook, and the class paths that they have replaced."""

from dataclasses import replace
from pathlib import Path

import pytest

import callbacks
from tests.conftest import DEMO
from zu_lightning import EditableLM, Fact, InputError, ReadingOptions, Request, RetainText
from zu_lightning.attacks.measurement import Attacks
from zu_lightning.evaluation.ability import Question, QuestionSet
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.evaluation.scores import evaluate_queries
from zu_lightning.report.ability import read_downstream
from zu_lightning.report.measurements import (
    Completions,
    Downstream,
    PreviousRequests,
    Representations,
    Scores,
    request_batches,
)


@pytest.fixture(scope="module")
def request_(demo_facts: list[Fact]) -> Request:
    text = RetainText([], ReadingOptions())
    return Request(demo_facts[:2], text, retain=demo_facts[200:202], known=demo_facts, heldout=["It was late."])


def test_attacks_compare_with_the_gold_model_once(request_: Request, demo_lm: EditableLM) -> None:
    attacks = Attacks(gold=str(DEMO / "model"), facts=1)
    assert "gold" not in attacks.measure(demo_lm, request_), "a gold model that knows the fact is left out"
    attacks = Attacks(gold=str(DEMO / "gold"), facts=1)
    found = attacks.measure(demo_lm, replace(request_, forget=request_.forget[1:]))
    assert found["model"].keys() >= {"rank", "leak", "probe"}
    assert all(len(scores) == 1 for scores in found["model"].values())


def test_scores_are_those_of_the_facts_and_the_text_of_the_request(request_: Request, demo_lm: EditableLM) -> None:
    scores = Scores().measure(demo_lm, request_)
    assert scores["efficacy"] == scores["retain"] == 100
    assert "perplexity" in scores
    assert scores["leak_nats"] > 1
    before = evaluate_queries(demo_lm, request_batches(demo_lm, request_)).queries
    assert Scores().measure(demo_lm, request_, before=before)["retain_sure"] == 100


def test_completions_are_of_facts_to_forget_and_to_keep(request_: Request, demo_lm: EditableLM) -> None:
    completions = Completions().measure(demo_lm, request_)
    facts = [*request_.forget, *request_.retain]
    assert [text.startswith(fact.target) for text, fact in zip(completions, facts, strict=True)] == [True] * 4


def test_representations_are_reported_only_with_those_before(
    request_: Request, demo_lm: EditableLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    representations = Representations(facts=2)
    found = representations.measure(demo_lm, request_, layers=[0, 1])
    assert {layer: len(states) for layer, states in found.items()} == {0: 4, 1: 4}
    report = representations.report(found, {layer: states + 1 for layer, states in found.items()}, request_, tmp_path)
    assert report is not None
    assert (tmp_path / "representations.json").exists()
    assert representations.report(None, found, request_, tmp_path) is None
    assert "unedited model was not read for these facts (at most 2 per group)" in caplog.text
    with pytest.raises(InputError, match="representations: facts is 0: give a positive number"):
        Representations(facts=0)


def test_a_task_that_was_not_measured_before_has_no_score_before(
    request_: Request, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    downstream = Downstream("tasks")
    downstream.sets = {name: QuestionSet(name, name, (Question("?", ("a", "b"), 0),)) for name in ("cola", "rte")}
    score = {"value": 50.0, "stderr": 1.0}
    report = downstream.report({"cola": score, "another": score}, {"cola": score, "rte": score}, request_, tmp_path)
    assert "Not every task was measured before" in caplog.text
    assert [set(metrics) for metrics in report.metrics] == [
        {"downstream/cola", "downstream/cola_stderr"},
        {"downstream/cola", "downstream/cola_stderr", "downstream/rte", "downstream/rte_stderr"},
    ]
    results = read_downstream(tmp_path)
    assert (results["cola"].before, results["rte"].before) == (TaskScore(50, 1), None)


def test_measurements_apply_only_where_there_is_something_to_measure(request_: Request) -> None:
    off = (Attacks("none"), Representations(), Downstream(), PreviousRequests())
    assert not any(measurement.applies(request_) for measurement in off)
    on = (Attacks(), Representations(5), Downstream("tasks"), Completions())
    assert all(measurement.applies(request_) for measurement in on)


@pytest.mark.parametrize(
    ("deprecated", "section", "options"),
    [
        (lambda: callbacks.Attacks(suite="full", facts=3), "attacks", {"preset": "full", "facts": 3}),
        (lambda: callbacks.Downstream("tasks", limit=2), "downstream", {"folder": "tasks", "limit": 2}),
        (lambda: callbacks.Representations(7), "representations", {"facts": 7}),
    ],
)
def test_old_class_paths_measure_the_same(deprecated: object, section: str, options: dict[str, object]) -> None:
    assert callable(deprecated)
    with pytest.warns(FutureWarning, match=f"section `{section}`"):
        (measurement,) = deprecated().measurements
    assert measurement.name == section
    assert vars(measurement).items() >= options.items()
