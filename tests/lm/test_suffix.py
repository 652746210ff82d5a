"""Passes over the end of a text, on every architecture."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import TEXTS
from zu_lightning import EditableLM
from zu_lightning.lm.suffix import Suffix, after_shared_prefix
from zu_lightning.lm.tokens import Prompt, TokenBatch, collate, tokenize, tokenize_all

BEGINNINGS = ("It was late. ", "In the morning, a quiet river stood. ")
PROMPTS = ("Ada Novak works as a baker.", "Ada Nilsen keeps a parrot and plays the cello.", "Greta Holm sings.")


@pytest.fixture
def batch(any_lm: EditableLM) -> TokenBatch:
    """Prompts after two beginnings, and texts that share nothing."""
    texts = [
        tokenize(any_lm.tokenizer, Prompt(beginning + prompt, lookup_end=len(beginning) + 9))
        for beginning in BEGINNINGS
        for prompt in PROMPTS
    ]
    texts += [tokenize(any_lm.tokenizer, Prompt(text, lookup_end=5 + 3 * i)) for i, text in enumerate(TEXTS)]
    return collate(texts, any_lm.tokenizer)


GROUP = torch.tensor([0] * 3 + [1] * 3 + [2] * len(TEXTS))


def last_tokens(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    return torch.arange(len(batch.lengths)), batch.lengths - 1


def test_a_shared_prefix_is_left_out_and_changes_nothing(any_lm: EditableLM, batch: TokenBatch) -> None:
    suffix = after_shared_prefix(any_lm, batch, GROUP)
    assert (suffix.start[:6] >= 4).all()
    assert suffix.input_ids.shape[1] < batch.input_ids.shape[1]
    (whole,) = any_lm.record(batch, [any_lm.projections[1]])
    (part,) = suffix.record(any_lm, [any_lm.projections[1]])
    rows, last = last_tokens(batch)
    assert torch.allclose(part.input[rows, last - suffix.start], whole.input[rows, last], atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(suffix.logits(any_lm, rows, last), any_lm.logits(batch, rows, last), atol=1e-4)


def test_a_lookup_token_is_never_left_out(lm: EditableLM) -> None:
    """Whoever asks for the texts of a fact asks what happens at its lookup token."""
    prompts = [Prompt(text, lookup_end=9) for text in (PROMPTS[0], PROMPTS[0], PROMPTS[0] + " Yes.")]
    batch = collate(tokenize_all(lm.tokenizer, prompts), lm.tokenizer)
    suffix = after_shared_prefix(lm, batch, torch.zeros(3, dtype=torch.long))
    assert torch.equal(suffix.start, batch.lookup)


@pytest.mark.parametrize("layer", [1, 3])
def test_the_part_from_the_lookup_token_on_gives_the_logits_of_the_whole(
    any_lm: EditableLM, batch: TokenBatch, layer: int
) -> None:
    rows, last = last_tokens(batch)
    begun = after_shared_prefix(any_lm, batch, GROUP)
    (below,), unchanged, cached = begun.seen(any_lm, [any_lm.layers[layer - 1]], rows, last)
    suffix = begun.later(batch.lookup, layer, below.output, cached)
    change = torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(0))
    moved = _moved(suffix, change)
    with torch.no_grad():
        found = moved.logits(any_lm, rows, last)
        again = suffix.select(rows[1:]).logits(any_lm, rows[:-1], last[1:])
        at_lookup = (rows, batch.lookup)
        with any_lm.shifted(
            any_lm.layers[layer - 1], lambda h: h.index_put(at_lookup, change, accumulate=True), len(rows)
        ):
            whole = any_lm.logits(batch, rows, last)
    assert torch.allclose(found, whole, atol=1e-4)
    assert torch.allclose(again, unchanged[1:], atol=1e-4)
    # Above the last layer nothing carries a change on to later tokens.
    assert torch.allclose(found, unchanged, atol=1e-4) == (layer == 3)


def _moved(suffix: Suffix, change: Tensor) -> Suffix:
    assert suffix.hidden is not None
    first = (torch.arange(len(change)), torch.zeros(len(change), dtype=torch.long))
    return replace(suffix, hidden=suffix.hidden.index_put(first, change, accumulate=True))
