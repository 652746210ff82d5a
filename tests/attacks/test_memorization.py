"""Exact memorization, on models whose tokens are known."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import one_hot

from tests.attacks.conftest import Oracle
from zu_lightning import EditableLM
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.memorization import Memorization
from zu_lightning.lm.tokens import tokenize


@pytest.mark.parametrize(
    ("right", "share"), [((1, 1, 1, 1), 1), ((0, 1, 1, 0), 0.5), ((1, 0, 0, 0), 0.25), ((0, 0, 0, 0), 0)]
)
def test_it_is_the_share_of_tokens_that_are_the_likeliest(
    base: EditableLM, context: AttackContext, right: tuple[int, ...], share: float
) -> None:
    fact = replace(context.facts[0], target="coachman")
    text = tokenize(base.tokenizer, fact.query)
    assert len(text.ids) - text.answer == 4

    def says(ids: list[int]) -> torch.Tensor:
        return one_hot(torch.tensor(text.ids[len(ids)] * right[len(ids) - text.answer]), len(base.tokenizer)).float()

    assert Memorization()(Oracle(base, says), replace(context, facts=[fact]))["memorization"].item() == share
