"""Second moments of retain keys, for all layers in one pass over the text."""

import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from zu_lightning.distributed import own_share, summed
from zu_lightning.errors import InputError
from zu_lightning.facts.texts import ReadingOptions, RetainText
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import TokenizedText, collate, tokenize
from zu_lightning.problem.moment_cache import MomentCache, read_tensors, write_tensors
from zu_lightning.timing import Monitor

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0
"""Seconds of work that a killed run loses at most, plus one batch."""

BLOCKS = 4
"""Number of blocks into which the columns of a symmetric product are cut; only blocks on and above the diagonal are
computed, 5/8 of the work."""


class SecondMoment:
    """Sum of k k^T over keys, accumulated batch by batch (uncentered, not divided by their number).

    Args:
        d_in: Length of a key.
        device: Where to keep the sum, d_in x d_in, float64.
    """

    def __init__(self, d_in: int, device: torch.device) -> None:
        self.total = torch.zeros(d_in, d_in, dtype=torch.float64, device=device)
        """On and above the diagonal; what lies below it means nothing."""

    def update(self, keys: Tensor) -> None:
        """Add keys, tokens x d_in."""
        edges = torch.linspace(0, len(self.total), BLOCKS + 1).round().int().tolist()
        for start, end in pairwise(edges):
            self.total[start:end, start:] += keys[:, start:end].mT @ keys[:, start:]

    def symmetric(self) -> Tensor:
        """The whole sum, d_in x d_in."""
        return self.total.triu_().add_(self.total.triu(1).mT)


def second_moments(
    lm: EditableLM, text: RetainText, layers: Sequence[int], monitor: Monitor | None = None
) -> dict[int, Tensor]:
    """Uncentered second moments of the keys of several layers, in one pass that ends at the highest of them.

    Args:
        lm: The model.
        text: Retain text. Moments of a model that is spread over devices are not cached: its weights cannot be
            looked at to recognize them.
        layers: Indices of the layers.
        monitor: Shows progress.

    Returns:
        For each layer C, d_in x d_in, float64: the mean of k k^T over all tokens of the text.

    Raises:
        InputError: There is no text.
    """
    monitor = monitor or Monitor()
    if not text.documents:
        raise InputError("corpus", None, "add retain text with at least one document that names no forgotten subject.")
    if text.cache is None or lm.is_dispatched:
        return _one_pass(lm, text, layers, None, monitor)
    cache = MomentCache(text.cache, lm, text)
    found = cache.read(layers, lm.device)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        partial = cache.partial_file(missing)
        computed = _one_pass(lm, text, missing, partial, monitor)
        cache.write(computed)
        with suppress(OSError):  # a folder that nothing could be written to
            partial.unlink()
        found |= computed
    else:
        log.info("second moments: read from %s", text.cache)
    return {layer: found[layer] for layer in layers}


def _one_pass(
    lm: EditableLM, text: RetainText, layers: Sequence[int], partial: Path | None, monitor: Monitor
) -> dict[int, Tensor]:
    """The moments, starting from the sums in ``partial`` if a killed run has left some; each process has a file."""
    documents = _tokenized(lm, text.documents, text.reading)
    moments = {layer: SecondMoment(lm.weight(layer).shape[1], lm.device) for layer in layers}
    done = _restore(moments, partial, lm.device)
    shares = list(own_share(batches(documents, text.reading.batch_tokens)))
    sizes = [sum(len(documents[i].ids) for i in indices) for indices in shares]
    saved = time.monotonic()
    with monitor.bar("Retain keys", sum(sizes), "tokens", sum(sizes[:done])) as bar:
        for number in range(done, len(shares)):
            batch = collate([documents[i] for i in shares[number]], lm.tokenizer).to(lm.device)
            real = batch.attention_mask.bool()
            for layer, record in zip(layers, lm.record(batch, [lm.projections[i] for i in layers]), strict=True):
                moments[layer].update(record.input[real].float())
            bar.update(sizes[number])
            if partial and time.monotonic() - saved > SAVE_EVERY:
                sums = {str(layer): moment.total for layer, moment in moments.items()}
                write_tensors(partial, sums | {"done": torch.tensor(number + 1)})
                saved = time.monotonic()
    totals = {layer: moment.symmetric() for layer, moment in moments.items()}
    summed(*totals.values())
    count = sum(len(document.ids) for document in documents)
    return {layer: total.div_(count) for layer, total in totals.items()}


def _restore(moments: dict[int, SecondMoment], partial: Path | None, device: torch.device) -> int:
    """Restore the sums that a killed run has left; returns how many batches they hold."""
    state = read_tensors(partial, device) if partial else None
    if not state:
        return 0
    for layer, moment in moments.items():
        moment.total = state[str(layer)]
    log.info("second moments: continuing after %d batches", done := int(state["done"]))
    return done


def _tokenized(lm: EditableLM, texts: Sequence[str], reading: ReadingOptions) -> list[TokenizedText]:
    """Documents, cut to their maximum length and to the maximum number of tokens of all together."""
    max_length = min(reading.max_length, lm.context_length)
    documents, left = [], reading.corpus_tokens
    for text in texts:
        if left is not None and left <= 0:
            break
        documents.append(tokenize(lm.tokenizer, text, max_length=max_length if left is None else min(max_length, left)))
        left = None if left is None else left - len(documents[-1].ids)
    return documents
