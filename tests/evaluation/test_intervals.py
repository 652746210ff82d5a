"""Scores of single facts, and the intervals of their means."""

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import TEXTS
from zu_lightning import EditableLM, Fact, ReadingOptions, evaluate, evaluation_batches
from zu_lightning.evaluation.intervals import interval, score_intervals, shares
from zu_lightning.evaluation.queries import fact_sums
from zu_lightning.evaluation.scores import EvaluationBatch, evaluate_queries


def sums(given: list[float], possible: list[float]) -> Tensor:
    return torch.tensor([given, [0.0] * len(given), possible], dtype=torch.float64).mT


def by_fact(lm: EditableLM, batches: list[EvaluationBatch]) -> dict[str, Tensor]:
    return fact_sums(evaluate_queries(lm, batches).queries)


def test_what_facts_add_is_what_the_metrics_sum_up(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    forget, retain = demo_facts[:3], demo_facts[3:8]
    small = evaluation_batches(demo_lm, forget, retain, TEXTS, ReadingOptions(batch_tokens=40))
    scores, found = evaluate(demo_lm, small), by_fact(demo_lm, small)
    assert {name: len(one) for name, one in found.items()} == {
        "efficacy": 3, "generalization": 3, "specificity": 3, "retain": 5, "perplexity": len(TEXTS)
    }  # fmt: skip
    for name in ("efficacy", "generalization", "specificity", "retain"):
        given, probability, possible = found[name].sum(0).tolist()
        assert 100 * given / possible == pytest.approx(scores[name])
        assert probability / possible == pytest.approx(scores[f"{name}_probability"])
    assert found["generalization"][:, 2].tolist() == [len(fact.paraphrases) for fact in forget]
    nll, _, tokens = found["perplexity"].sum(0).tolist()
    assert math.exp(nll / tokens) == pytest.approx(scores["perplexity"])


def test_a_facts_own_scores_are_those_of_an_evaluation_of_it_alone(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    found = by_fact(demo_lm, evaluation_batches(demo_lm, demo_facts[:3], [], []))
    for i, fact in enumerate(demo_facts[:3]):
        alone = evaluate(demo_lm, evaluation_batches(demo_lm, [fact], [], []))
        assert found["efficacy"][i, 1].item() == pytest.approx(alone["efficacy_probability"], rel=1e-4)
        assert 100 * shares(found["specificity"])[i].item() == pytest.approx(alone["specificity"])


def test_an_interval_is_as_wide_as_the_facts_differ() -> None:
    low, high = interval(sums([1, 0] * 50, [1] * 100))
    # A share of a half of 100 facts has a standard error of 0.05.
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.02)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.02)
    paired = interval(sums([4, 0] * 25, [4] * 50))
    assert paired[1] - paired[0] > 1.2 * (high - low), "four questions about one fact are not four facts"
    assert interval(sums([1, 0] * 50, [1] * 100)) == (low, high), "the same seed gives the same interval"


@pytest.mark.parametrize("n", [1, 10, 300])
def test_facts_that_all_agree_leave_room_for_what_was_not_seen(n: int) -> None:
    low, high = interval(sums([0] * n, [2] * n))
    assert low == 0
    assert (1 - high) ** n == pytest.approx(0.025), "with such a share none of n facts would show it in 2.5% of draws"
    assert list(interval(sums([2] * n, [2] * n))) == pytest.approx([1 - high, 1])


def test_intervals_have_the_units_of_their_scores() -> None:
    texts = sums([10.0, 30.0, 20.0], [10, 10, 10])
    found = score_intervals({"retain": sums([1, 0, 1], [1, 1, 1]), "perplexity": texts})
    assert 0 <= found["retain"][0] < 200 / 3 < found["retain"][1] <= 100
    assert math.e <= found["perplexity"][0] < math.exp(2) < found["perplexity"][1] <= math.exp(3)


def test_facts_that_nothing_was_asked_of_do_not_count() -> None:
    with_gap = sums([1, 0, 0], [1, 0, 1])
    assert shares(with_gap)[1].isnan()
    assert interval(with_gap) == interval(sums([1, 0], [1, 1]))
    assert all(math.isnan(end) for end in interval(sums([0], [0])))


@pytest.mark.parametrize("alike", [sums([1], [2]), sums([1, 1, 1], [2, 2, 2]), sums([13.5], [10])])
def test_facts_that_tell_nothing_of_their_spread_have_no_interval(alike: Tensor) -> None:
    assert all(math.isnan(end) for end in interval(alike))
    assert score_intervals({"retain": alike}) == {}
