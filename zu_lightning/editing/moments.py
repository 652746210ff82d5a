"""Second moments of retain keys, for all layers in one pass over the text."""

import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from zu_lightning.facts.texts import ReadingOptions, RetainText
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.tokens import TokenizedText, collate, tokenize, tokenize_all
from zu_lightning.lm.work import Work
from zu_lightning.runtime.cache import Cache, Tensors, read_tensors, write_tensors
from zu_lightning.runtime.distributed import all_reduce, rank_shard
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest
from zu_lightning.runtime.timing import Monitor

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0
"""Seconds of work that a killed run loses at most, plus one batch."""

BLOCKS = 4
"""Number of blocks into which the columns of a symmetric product are cut; only blocks on and above the diagonal are
computed, 5/8 of the work."""
SAMPLED = 50
"""Number of documents whose length says how long all of them are."""
MOST = 0.5
"""Sums over the corpus are corrected if what they have too much and too little is at most this share of the tokens."""


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
    lm: EditableLM,
    text: RetainText,
    layers: Sequence[int],
    monitor: Monitor | None = None,
    cache: Cache | None = None,
) -> dict[int, Tensor]:
    """Uncentered second moments of the keys of several layers, in passes that end at the highest of them.

    If the text comes from a corpus (``text.corpus``), the sums over the whole corpus are computed first. Those of the
    documents that the text leaves out are subtracted, those that it has besides are added: the sums over the corpus are
    shared by all runs, and only a few documents have to be read for another choice of them. Compared with a pass over
    the documents themselves, that changes the last bits of what the model's dtype resolves.

    Args:
        lm: The model.
        text: Retain text.
        layers: Indices of the layers.
        monitor: Shows progress.
        cache: Where the moments, and the sums over the corpus, are looked for and kept.

    Returns:
        For each layer C, d_in x d_in, float64: the mean of k k^T over all tokens of the text.

    Raises:
        InputError: There is no text.
    """
    if not text.documents:
        raise InputError("corpus", None, "add retain text with at least one document that names no forgotten subject.")
    cache, reading = cache or open_cache(None, lm), text.reading
    reader = _Reader(lm, reading, cache, monitor or Monitor())
    of_corpus = _of_corpus(lm, text)

    def means(some: list[int]) -> dict[int, Tensors]:
        documents = reader.tokenized(text.documents)
        sums = _sums_by_corpus(reader, documents, reader.tokenized(text.corpus), some, of_corpus)
        return {layer: {"moment": total.div_(_tokens(documents))} for layer, total in sums.items()}

    found = cache.each("moments", layers, means, of_corpus, digest(*text.documents))
    return {layer: tensors["moment"] for layer, tensors in found.items()}


def moments_work(lm: EditableLM, text: RetainText, layers: Sequence[int], cache: Cache) -> Work:
    """About what :func:`second_moments` computes, from the lengths of some documents; what is cached is left out."""
    of_corpus = _of_corpus(lm, text)
    if not text.documents or cache.holds("moments", layers, of_corpus, digest(*text.documents)):
        return Work()
    corpus, kept, limit = text.corpus or text.documents, set(text.documents), text.reading.corpus_tokens or math.inf
    sample = corpus[:: -(-len(corpus) // SAMPLED)]
    length = min(text.reading.max_length, lm.context_length)
    mean = _tokens(tokenize_all(lm.tokenizer, sample, length)) / len(sample)
    whole = mean * len(corpus)
    # As many more are read, after those that are left out, if there is a limit.
    left_out = min(1.0, limit / whole) * mean * sum(document not in kept for document in corpus)
    left_out *= 1 if whole <= limit else 2
    read = left_out + (0 if cache.holds("sums", layers, of_corpus) else min(whole, limit))
    widths = [lm.weight(layer).shape[1] for layer in layers]
    share = (layers[-1] + 1) / len(lm.layers)
    # Keys are multiplied in float32, in half the time of float64.
    flop = (1 + 1 / BLOCKS) * sum(width**2 for width in widths) / 2
    return Work(share * read, 0, share * read / text.reading.batch_tokens, flop * read)


def _of_corpus(lm: EditableLM, text: RetainText) -> str:
    """Digest of everything that sums over the corpus depend on."""
    reading = text.reading
    length = min(reading.max_length, lm.context_length)
    return digest(length, reading.batch_tokens, reading.corpus_tokens, *text.corpus)


def _sums_by_corpus(
    reader: "_Reader", documents: list[TokenizedText], corpus: list[TokenizedText], layers: list[int], of_corpus: str
) -> dict[int, Tensor]:
    """For each layer the sum over documents, corrected from that of the corpus if the two have most in common."""
    left_out, added = _difference(corpus, documents), _difference(documents, corpus)
    if _tokens(left_out) + _tokens(added) > MOST * _tokens(documents):
        return reader.sums(documents, layers)
    # Each layer's sum is the draw's own from here on: what a cache has kept is on its disk.
    found = reader.cache.each(
        "sums", layers, lambda some: {i: {"sum": total} for i, total in reader.sums(corpus, some).items()}, of_corpus
    )
    totals = {layer: tensors["sum"] for layer, tensors in found.items()}
    for some, sign in ((left_out, -1), (added, 1)):
        for layer, total in (reader.sums(some, layers) if some else {}).items():
            totals[layer].add_(total, alpha=sign)
    return totals


class _Reader:
    """Reads documents with a model, and adds up the products of the keys that it sees."""

    def __init__(self, lm: EditableLM, reading: ReadingOptions, cache: Cache, monitor: Monitor) -> None:
        self.lm, self.reading, self.cache, self.monitor = lm, reading, cache, monitor
        self.max_length = min(reading.max_length, lm.context_length)
        # Most documents are in the corpus as well.
        self._tokenized = lru_cache(None)(lambda text, length: tokenize(lm.tokenizer, text, max_length=length))

    def tokenized(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Documents, cut to their maximum length and to the maximum number of tokens of all together."""
        documents, left = list[TokenizedText](), self.reading.corpus_tokens
        for text in texts:
            if left is not None and left <= 0:
                break
            length = self.max_length if left is None else min(self.max_length, left)
            documents.append(self._tokenized(text, length))
            left = None if left is None else left - len(documents[-1].ids)
        return documents

    def sums(self, documents: Sequence[TokenizedText], layers: Sequence[int]) -> dict[int, Tensor]:
        """For each layer the sum of k k^T, d_in x d_in; begins with what a killed run has left in this process."""
        lm, size = self.lm, self.reading.batch_tokens
        partial = self.cache.partial_file(size, list(layers), digest(*(text.ids for text in documents)))
        moments = {layer: SecondMoment(lm.weight(layer).shape[1], lm.device) for layer in layers}
        done = _restore(moments, partial, lm.device)
        shares = list(rank_shard(batches(documents, size)))
        sizes = [sum(len(documents[i].ids) for i in indices) for indices in shares]
        saved = time.monotonic()
        with self.monitor.bar("Retain keys", sum(sizes), "tokens", sum(sizes[:done])) as bar:
            for number in range(done, len(shares)):
                batch = collate([documents[i] for i in shares[number]], lm.tokenizer).to(lm.device)
                real = batch.attention_mask.bool()
                for layer, record in zip(layers, lm.record(batch, [lm.projections[i] for i in layers]), strict=True):
                    keys = record.input[real]
                    moments[layer].update(keys if keys.dtype == torch.float64 else keys.float())
                bar.update(sizes[number])
                if partial and time.monotonic() - saved > SAVE_EVERY:
                    sums = {str(layer): moment.total for layer, moment in moments.items()}
                    write_tensors(partial, sums | {"done": torch.tensor(number + 1)})
                    saved = time.monotonic()
        totals = {layer: moment.symmetric() for layer, moment in moments.items()}
        all_reduce(*totals.values())
        if partial:
            with suppress(OSError):  # a folder that nothing could be written to
                partial.unlink()
        return totals


def _restore(moments: dict[int, SecondMoment], partial: Path | None, device: torch.device) -> int:
    """Restore the sums that a killed run has left; returns how many batches they hold."""
    state = read_tensors(partial, device) if partial else None
    if not state:
        return 0
    for layer, moment in moments.items():
        moment.total = state[str(layer)]
    log.info("second moments: continuing after %d batches", done := int(state["done"]))
    return done


def _difference(documents: Sequence[TokenizedText], others: Sequence[TokenizedText]) -> list[TokenizedText]:
    """The documents that are not among the others, as tokens; each as often as it is missing there."""
    there = Counter(tuple(text.ids) for text in others)
    missing = []
    for text in documents:
        there[tuple(text.ids)] -= 1
        if there[tuple(text.ids)] < 0:
            missing.append(text)
    return missing


def _tokens(documents: Sequence[TokenizedText]) -> int:
    return sum(len(text.ids) for text in documents)
