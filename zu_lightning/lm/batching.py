"""Batches of texts of similar length, and smaller batches where memory is short."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from zu_lightning.lm.tokens import TokenizedText

log = logging.getLogger(__name__)

T = TypeVar("T")

PADDED = 1.5
"""Largest ratio of the longest to the shortest member of an even batch."""


def batches(texts: Sequence[TokenizedText], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of texts of similar length, at most ``batch_tokens`` per batch, padding included (one text at least)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    batch: list[int] = []
    for i in order:
        if batch and len(texts[i].ids) * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def even_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of similar ``lengths``, at most ``size`` per batch, evenly divided so that ranks get equal shards."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        alike = [i for i in order if lengths[i] <= PADDED * lengths[order[0]]]
        edges = torch.linspace(0, len(alike), -(-len(alike) // size) + 1).round().int().tolist()
        yield from (alike[start:end] for start, end in pairwise(edges))
        order = order[len(alike) :]


def alike(lengths: Sequence[int], overhead: int) -> list[list[int]]:
    """Indices in groups of similar ``lengths``, with the fewest tokens in all, padding included.

    Args:
        lengths: Lengths of texts, in tokens.
        overhead: Fixed cost of a group, in tokens.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    ends = [i for i in range(1, len(order) + 1) if i == len(order) or lengths[order[i]] > lengths[order[i - 1]]]
    cheapest: dict[int, tuple[int, list[list[int]]]] = {0: (0, [])}
    for end in ends:
        cheapest[end] = min(
            (cost + overhead + lengths[order[end - 1]] * (end - start), [*groups, order[start:end]])
            for start, (cost, groups) in cheapest.items()
        )
    return cheapest[len(order)][1]


def retry_with_smaller_batch(
    work: Callable[[list[int]], T], shares: Iterable[list[int]], name: str
) -> Iterator[tuple[list[int], T]]:
    """Work on batches of indices; a batch that does not fit into memory is halved, and so are all later ones.

    Args:
        work: Called with the indices of a batch.
        shares: Batches, in order.
        name: Name of the work, for messages.

    Yields:
        The indices of each finished batch, with the result.

    Raises:
        RuntimeError: A batch of one does not fit into memory, or ``work`` raised it for another reason.
    """
    waiting = list(shares)[::-1]
    fits = max(map(len, waiting), default=0)
    while waiting:
        share = waiting.pop()
        if len(share) > fits:
            waiting += [share[fits:], share[:fits]]
            continue
        try:
            result = work(share)
        except RuntimeError as error:
            if len(share) == 1 or not should_reduce_batch_size(error):
                raise
            fits = len(share) // 2
            waiting.append(share)
            log.warning("%s: not enough memory for %d facts at a time; trying %d", name, len(share), fits)
        else:
            yield share, result
            continue
        clear_device_cache(garbage_collection=True)  # only now has the exception released its tensors
