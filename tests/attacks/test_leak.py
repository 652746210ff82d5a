"""Leaks, on models whose answers have known probabilities."""

import math
from dataclasses import replace

import pytest
import torch

from tests.attacks.conftest import Oracle
from zu_lightning import EditableLM, Fact
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.leak import Leak

TRADE = "By trade, Simon Nagy is a"


def test_it_is_the_probability_of_at_least_one_hit(base: EditableLM, context: AttackContext) -> None:
    fact = Fact.from_record({"prompt": "Simon Nagy lives in", "target": "Cairo", "paraphrases": [TRADE]}, "", "0")
    likely = base.tokenizer(" Cairo")["input_ids"][1]

    def says(ids: list[int]) -> torch.Tensor:
        """Cairo with probability 1/2, and 1/5 after the paraphrase."""
        odds = 1 / 4 if base.tokenizer.decode(ids, skip_special_tokens=True) == TRADE else 1
        logits = torch.zeros(len(base.tokenizer))
        logits[likely] = math.log(odds * (len(logits) - 1))
        return logits

    asked = replace(context, facts=[fact])
    for samples, expected, paraphrased in ((1, 1 / 2, 1 / 5), (3, 7 / 8, 61 / 125)):
        scores = Leak(samples=samples)(Oracle(base, says), asked)
        assert scores["leak"].item() == pytest.approx(expected, rel=1e-5)
        assert scores["leak_paraphrases"].item() == pytest.approx(paraphrased, rel=1e-5)


def test_a_fact_without_paraphrases_has_one_score(base: EditableLM, context: AttackContext) -> None:
    scores = Leak()(base, replace(context, facts=[replace(context.facts[0], paraphrases=()), *context.facts[1:]]))
    assert scores["leak_paraphrases"].isnan().tolist() == [True, False, False, False]
    assert not scores["leak"].isnan().any()
