"""Extraction strength, on models whose tokens are known."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import one_hot

from tests.attacks.conftest import Oracle
from zu_lightning import EditableLM
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.extraction import Extraction, extraction_strength
from zu_lightning.lm.tokens import tokenize


@pytest.mark.parametrize(
    ("likeliest", "strength"),
    [
        ([True, True, True, True], 1.0),
        ([False, True, True, True], 0.75),
        ([True, False, True, True], 0.5),
        ([True, False, True, False], 0.0),
        ([True, True, False, True], 0.25),
        ([False, False, False, False], 0.0),
        ([True], 1.0),
        ([False], 0.0),
    ],
)
def test_it_is_the_share_at_the_end_that_is_right(likeliest: list[bool], strength: float) -> None:
    assert extraction_strength(torch.tensor(likeliest)) == strength
    length = len(likeliest)
    starts = [k for k in range(length + 1) if all(likeliest[k:])]
    assert strength == 1 - min(starts) / length, "the definition, with k = T where nothing is right"


def test_a_model_whose_last_token_alone_is_right_needs_all_others(base: EditableLM, context: AttackContext) -> None:
    fact = replace(context.facts[0], target="coachman")
    text = tokenize(base.tokenizer, fact.query)
    oracle = Oracle(base, lambda ids: one_hot(torch.tensor(text.ids[-1]), len(base.tokenizer)).float())
    assert Extraction()(oracle, replace(context, facts=[fact]))["extraction"].item() == 0.25, "of four tokens"
