"""Truth ratios on models whose answers are known, and their test against all permutations."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from tests.attacks.conftest import Oracle
from tests.conftest import random
from zu_lightning import EditableLM, Fact
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.truth_ratio import TruthRatio, forget_quality, truth_ratio

HOME = "The home of Simon is in"


def city(lm: EditableLM, context: AttackContext, liking: dict[str, dict[str, float]]) -> tuple[Oracle, AttackContext]:
    """A model with given odds of answers of one token after given prompts, and an context on the first of each."""

    def says(ids: list[int]) -> Tensor:
        logits = torch.zeros(len(lm.tokenizer))
        for answer, odds in liking[str(lm.tokenizer.decode(ids, skip_special_tokens=True))].items():
            logits[lm.tokenizer(f" {answer}")["input_ids"][1]] = math.log(odds)
        return logits

    prompt, *paraphrases = liking
    answer, *others = liking[prompt]
    fact = Fact.from_record({"prompt": prompt, "target": answer, "paraphrases": paraphrases}, "", "0")
    return Oracle(lm, says), replace(context, facts=[fact], answers=[tuple(others)])


def test_a_model_that_knows_prefers_the_truth(base: EditableLM, context: AttackContext) -> None:
    assert min(TruthRatio()(base, context)["truth_ratio"].tolist()) > 0.9


@pytest.mark.parametrize(("odds", "score"), [(8.0, 0.8), (1.0, 1 / 3), (2.0, 0.5)])
def test_it_is_the_mean_of_wrong_answers_over_the_truth(
    base: EditableLM, context: AttackContext, odds: float, score: float
) -> None:
    oracle, asked = city(base, context, {HOME: {"Cairo": odds, "Tokyo": 1.0, "Madrid": 3.0}})
    assert TruthRatio()(oracle, asked)["truth_ratio"].item() == pytest.approx(score, abs=1e-6)


def test_answers_are_asked_for_after_paraphrases(base: EditableLM, context: AttackContext) -> None:
    likings = {HOME: {"Cairo": 9.0, "Tokyo": 1.0}, "Simon lives in": {"Cairo": 2.0, "Tokyo": 5.0}}
    oracle, asked = city(base, context, likings)
    assert TruthRatio()(oracle, asked)["truth_ratio"].item() == pytest.approx(1 / 3.5)
    assert truth_ratio(torch.tensor([[0.2, 0.5], [0.9, 0.1], [0.1, 0.8]])) == pytest.approx(1.4 / 1.2), "by hand"


def test_likelihood_is_per_token(base: EditableLM, context: AttackContext) -> None:
    oracle = Oracle(base, lambda ids: torch.zeros(len(base.tokenizer)))
    asked = replace(context, facts=context.facts[:1], answers=[("Cairo", "Athens", "coachman")])
    assert TruthRatio()(oracle, asked)["truth_ratio"].item() == pytest.approx(0.5), "whatever the lengths of answers"


def test_a_fact_without_wrong_answers_has_none(base: EditableLM, context: AttackContext) -> None:
    asked = replace(context, answers=[(), *context.answers[1:]])
    assert TruthRatio()(base, asked)["truth_ratio"].isnan().tolist() == [True, False, False, False]


def distance(some: Tensor, others: Tensor) -> float:
    """Between two distribution functions, at its largest."""
    places = torch.cat([some, others])
    shares = [(values[None] <= places[:, None]).double().mean(1) for values in (some, others)]
    return float((shares[0] - shares[1]).abs().max())


@pytest.mark.parametrize(("n", "m", "shift"), [(4, 4, 0.0), (5, 4, 1.0), (3, 6, 2.0), (5, 5, 9.0), (1, 3, 0.0)])
def test_forget_quality_is_that_of_all_permutations(n: int, m: int, shift: float) -> None:
    edited, gold = random(n, seed=n), random(m, seed=10 + m) + shift
    pooled, found = torch.cat([edited, gold]), distance(edited, gold)
    chosen = list(combinations(range(n + m), n))
    others = [[i for i in range(n + m) if i not in some] for some in chosen]
    reached = sum(
        distance(pooled[[*some]], pooled[rest]) >= found - 1e-9 for some, rest in zip(chosen, others, strict=True)
    )
    assert forget_quality(edited, gold) == pytest.approx(reached / len(chosen))


def test_forget_quality_of_many_is_close_to_the_limit_of_kolmogorov() -> None:
    edited, gold = random(200, seed=0), random(200, seed=1) + 0.2
    size = 10 * distance(edited, gold)  # the square root of n m / (n + m), times the distance
    limit = 2 * sum((-1) ** (j - 1) * math.exp(-2 * j**2 * size**2) for j in range(1, 20))
    assert forget_quality(edited, gold) == pytest.approx(limit, rel=0.25)
    assert forget_quality(edited, gold + 9) == pytest.approx(2 / math.comb(400, 200), rel=1e-6), "as small as can be"


def test_ten_facts_are_too_few() -> None:
    values = torch.arange(10)
    assert forget_quality(values, values) == 1
    assert forget_quality(values, values + 4.5) > 0.1, "though almost half of them are smaller than all others"


def test_forget_quality_leaves_out_what_is_missing() -> None:
    nan = float("nan")
    edited, gold = torch.tensor([1.0, nan, 2.0]), torch.tensor([3.0, 4.0])
    assert forget_quality(edited, gold) == pytest.approx(2 / 6)
    assert math.isnan(forget_quality(edited, torch.tensor([nan])))
