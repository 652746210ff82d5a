"""Batched passes of texts through a language model, in batches of similar length on its device."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import TokenBatch, TokenizedText, collate
from zu_lightning.runtime.distributed import rank_shard


def batched(
    lm: EditableLM, texts: Sequence[TokenizedText], batch_tokens: int = BATCH_TOKENS, *, sharded: bool = False
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Batches of texts of similar length, on the model's device.

    Args:
        lm: The model.
        texts: Tokenized texts.
        batch_tokens: Maximum number of tokens per batch, padding included.
        sharded: Whether each process gets its shard of the batches instead of all of them.

    Yields:
        The indices of a batch's texts, and the batch.
    """
    chosen = batches(texts, batch_tokens)
    for indices in rank_shard(chosen) if sharded else chosen:
        yield indices, collate([texts[i] for i in indices], lm.tokenizer).to(lm.device)


def next_token_probabilities(
    lm: EditableLM, texts: Sequence[TokenizedText], batch_tokens: int = BATCH_TOKENS, *, sharded: bool = False
) -> Iterator[tuple[list[int], Tensor]]:
    """Probabilities of the next token after whole texts; the arguments are those of :func:`batched`.

    Yields:
        The indices of a batch's texts, and texts x vocabulary, float32.
    """
    for indices, batch in batched(lm, texts, batch_tokens, sharded=sharded):
        rows = torch.arange(len(indices), device=lm.device)
        yield indices, lm.logits(batch, rows, batch.lengths - 1).softmax(-1)
