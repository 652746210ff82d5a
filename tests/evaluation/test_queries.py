"""Scores that compare queries: with those of the model before, and with those about made-up names."""

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import TEXTS
from zu_lightning import EditableLM, Fact, ReadingOptions, evaluate, evaluation_batches
from zu_lightning.evaluation.queries import LEAK, Column, QueryScores, QueryTables, fact_sums, leaks, scores_of
from zu_lightning.evaluation.score_table import SURE
from zu_lightning.evaluation.scores import evaluate_queries

CPU = torch.device("cpu")


def table(*rows: tuple[int, float, float], tokens: int = 1) -> Tensor:
    """Queries as triples: the fact, the probability of the answer, and its margin."""
    filled = torch.zeros(len(rows), len(Column), dtype=torch.float64)
    for row, (fact, probability, margin) in zip(filled, rows, strict=True):
        row[:] = torch.tensor([fact, tokens, margin > 0, probability, math.log(probability), margin])
    return filled


BEFORE = {"retain": table((0, 0.9, 3.0), (1, 0.3, SURE - 0.1), (1, 0.5, SURE), (2, 0.1, -2.0))}
AFTER = {"retain": table((0, 0.8, 2.0), (1, 0.1, -1.0), (1, 0.2, -0.5), (2, 0.4, 1.0))}


def test_sure_scores_are_over_the_queries_that_the_model_before_was_sure_of() -> None:
    sums = fact_sums(AFTER, BEFORE)
    assert scores_of(sums) == {"retain_sure": 50.0, "retain_sure_probability": pytest.approx((0.8 + 0.2) / 2)}
    assert sums["retain_sure"].tolist() == [[1, pytest.approx(0.8), 1], [0, pytest.approx(0.2), 1]]
    assert scores_of(fact_sums(BEFORE, BEFORE))["retain_sure"] == 100


@pytest.mark.parametrize(
    "before",
    [
        {},
        {"retain": BEFORE["retain"][:3]},
        {"retain": BEFORE["retain"].flip(0)},
        {"retain": table((0, 0.9, 0.5), (1, 0.9, 0.5), (1, 0.9, 0.5), (2, 0.9, 0.5))},
    ],
    ids=["not evaluated", "fewer queries", "other queries", "sure of none"],
)
def test_without_queries_that_it_was_sure_of_there_is_no_score(before: QueryTables) -> None:
    assert scores_of(fact_sums(AFTER, before)) == {}


def test_the_leak_compares_the_answer_with_that_for_made_up_names() -> None:
    own = table((0, 0.5, 1.0), (1, 0.01, -1.0), (2, 0.9, 1.0))
    names = table((0, 0.1, -1.0), (0, 0.3, -1.0), (1, 0.04, -1.0))
    names = torch.cat([names, torch.zeros(1, len(Column), dtype=torch.float64)])  # one that was not asked
    tables = {"efficacy": own, LEAK: names}
    expected = [math.log(0.5 / 0.2), math.log(0.01 / 0.04)]
    found = leaks(tables)
    assert found[:2].tolist() == pytest.approx(expected)
    assert found[2].isnan(), "there are no made-up names for it"
    scores = scores_of(fact_sums(tables))
    assert scores == {LEAK: pytest.approx(sum(expected) / 2), f"{LEAK}_worst": pytest.approx(expected[0])}
    assert scores_of(fact_sums({"efficacy": own})) == scores_of(fact_sums({LEAK: names})) == {}


def test_answers_that_nobody_would_give_have_a_leak_all_the_same() -> None:
    """Long answers have probabilities that underflow."""
    own, names = table((0, 0.5, 1.0)), table((0, 0.5, -1.0), (0, 0.5, -1.0))
    own[:, Column.LOG_PROBABILITY], names[:, Column.LOG_PROBABILITY] = -2000, -2003
    assert leaks({"efficacy": own, LEAK: names}).tolist() == pytest.approx([3.0])


def test_batches_fill_tables_in_any_order() -> None:
    scores = QueryScores(["retain", "specificity"])
    scores.add("retain", torch.tensor([2, 0]), {Column.FACT: torch.tensor([1, 0]), Column.TOKENS: torch.tensor([3, 2])})
    scores.add("retain", torch.tensor([1]), {Column.FACT: torch.tensor([1]), Column.TOKENS: torch.tensor([4])})
    tables = scores.over_all_processes(CPU)
    assert list(tables) == ["retain"]
    assert tables["retain"][:, : Column.GIVEN].tolist() == [[0, 2], [1, 4], [1, 3]]


def test_a_model_leaks_what_it_knows_about_a_name(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    forget, retain = demo_facts[:2], demo_facts[3:6]
    names = [("Orvelin Thasker", "Maraude Quillfen")]  # none for the second fact
    batches = evaluation_batches(
        demo_lm, forget, retain, TEXTS, ReadingOptions(batch_tokens=40), unknown_subjects=names
    )
    found = evaluate_queries(demo_lm, batches)
    of_first = [forget[0], *(forget[0].about(name) for name in names[0])]
    probabilities = [
        evaluate(demo_lm, evaluation_batches(demo_lm, [fact], [], []))["efficacy_probability"] for fact in of_first
    ]
    expected = math.log(probabilities[0] / (sum(probabilities[1:]) / 2))
    assert expected > 1
    assert found.scores[LEAK] == found.scores[f"{LEAK}_worst"] == pytest.approx(expected, abs=1e-3)
    assert "retain_sure" not in found.scores, "nothing says what the model before was sure of"
    assert evaluate(demo_lm, batches, found.queries)["retain_sure"] == 100
