"""The verdict: gaps to gold, their intervals, and the sentence."""

import math

import pytest
import torch
from torch import Tensor

from zu_lightning.attacks.verdict import verdict

NAN = math.nan


def scores(**values: list[float]) -> dict[str, Tensor]:
    return {name: torch.tensor(of_facts, dtype=torch.float64) for name, of_facts in values.items()}


def test_the_gap_is_taken_fact_by_fact() -> None:
    edited, gold = scores(rank=[1.0, 0.0, 1.0, NAN]), scores(rank=[1.0, 0.0, 0.0, NAN])
    found = verdict(edited, scores(rank=[1.0] * 4), gold).scores["rank"]
    assert [found.edited, found.base, found.gold] == pytest.approx([2 / 3, 1, 1 / 3])
    assert found.gap is not None
    assert found.gap.mean == pytest.approx(1 / 3)
    assert (found.gap.low, found.gap.high) == (0.0, 1.0)


def test_the_interval_is_that_of_the_mean() -> None:
    torch.manual_seed(0)
    values = torch.randn(400, dtype=torch.float64)
    gap = verdict({"a": values}, {"a": values}, {"a": torch.zeros(400)}).scores["a"].gap
    assert gap is not None
    error = (values.std() / 20).item()
    assert gap.low == pytest.approx(gap.mean - 1.96 * error, abs=0.2 * error)
    assert gap.high == pytest.approx(gap.mean + 1.96 * error, abs=0.2 * error)


def test_each_attack_counts_once_however_many_scores_it_has() -> None:
    edited = scores(rank=[1.0], rank_first=[1.0], rank_paraphrases=[1.0], leak=[0.0])
    found = verdict(edited, edited, scores(rank=[0.0], rank_first=[0.0], rank_paraphrases=[0.0], leak=[0.0]))
    assert found.attacks == 2
    assert found.mean_gap is not None
    assert found.mean_gap.mean == 0.5


def test_a_score_that_applies_to_no_fact_is_left_out() -> None:
    edited = scores(rank=[NAN, NAN], leak=[0.5, 0.5])
    assert list(verdict(edited, edited, edited).scores) == ["leak"]


def test_the_sentence_says_what_was_found() -> None:
    none, all_of_it = scores(rank=[0.0] * 10), scores(rank=[1.0] * 10)
    assert verdict(none, all_of_it, none).sentence.startswith(
        "Erased, as far as these attacks can tell: averaged over 1 attacks on 10 facts, recovery is 0.0 points (95% CI "
    )
    masked = verdict(all_of_it, all_of_it, none).sentence
    assert masked.startswith("Masked, not erased")
    assert "100.0 points (95% CI 100.0 to 100.0) above" in masked
    assert "the strongest attack is rank, 100 points" in masked
    some = scores(rank=[1.0] + [0.0] * 9)
    assert verdict(some, all_of_it, none).sentence.startswith("Inconclusive")
    assert "without a model that was never trained" in verdict(none, all_of_it).sentence


def test_one_attack_that_finds_the_facts_is_enough() -> None:
    edited = {name: torch.zeros(10) for name in "abcdefghij"}
    gold = {name: torch.full((10,), 0.5) for name in edited}
    edited["a"] = torch.ones(10)
    found = verdict(edited, gold, gold)
    assert found.mean_gap is not None
    assert found.mean_gap.mean < 0
    assert found.sentence.startswith("Masked, not erased")


def test_a_loss_on_few_questions_is_no_harm() -> None:
    edited = scores(rank_first=[1.0] * 3, kept=[0.6, 1.0, 1.0])
    base = scores(rank_first=[1.0] * 3, kept=[1.0] * 3)
    assert verdict(edited, base).sentence.endswith(
        "The true answer still ranks first for 100% of facts. "
        "It still answers 87% of the control facts that the unedited model answers."
    )


def test_a_model_that_answers_nothing_any_more_is_harmed() -> None:
    nothing, everything = scores(rank=[0.0] * 4, kept=[0.0] * 4), scores(rank=[1.0] * 4, kept=[1.0] * 4)
    found = verdict(nothing, everything, nothing)
    assert (found.attacks, found.kept) == (1, 0.0)
    assert "kept" not in found.scores
    assert found.sentence.endswith(
        "The model is harmed: it answers only 0% of the control facts that the unedited model answers."
    )
    assert verdict(everything, everything, nothing).sentence.endswith(
        "It still answers 100% of the control facts that the unedited model answers."
    )


def test_numbers_are_what_there_is() -> None:
    none, all_of_it = scores(rank=[0.0] * 10), scores(rank=[1.0] * 10)
    assert verdict(none, all_of_it).scores_by_name() == {"rank": {"base": 1.0, "edited": 0.0}}
    with_gold = verdict(none, all_of_it, none).scores_by_name()["rank"]
    assert with_gold == {"base": 1.0, "edited": 0.0, "gold": 0.0, "gap": 0.0, "low": 0.0, "high": 0.0}


def test_chance_is_that_of_the_facts_that_have_a_score() -> None:
    edited = scores(rank_first=[1.0, 0.0, NAN], leak=[0.0] * 3)
    found = verdict(edited, edited, chance=scores(rank_first=[0.1, 0.04, 0.5]))
    assert found.scores_by_name()["rank_first"] == {"base": 0.5, "edited": 0.5, "chance": pytest.approx(0.07)}
    assert "chance" not in found.scores_by_name()["leak"]
    assert found.sentence.endswith("The true answer still ranks first for 50% of facts (7% by chance).")


def test_there_is_no_verdict_on_what_was_not_known_nor_on_a_fact_or_two() -> None:
    little, much = scores(leak=[0.02] * 10), scores(leak=[1.0] * 10)
    assert verdict(little, little, little).sentence == (
        "Nothing to erase: 20 samples of the unedited model reveal 2% of facts."
    )
    assert verdict(little, much, little).sentence.startswith("Erased")
    one = verdict(scores(leak=[0.0]), scores(leak=[1.0]), scores(leak=[0.0])).sentence
    assert one.startswith("Too few facts for a verdict: averaged over 1 attacks on 1 fact, recovery")
