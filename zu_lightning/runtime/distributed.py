"""Sharing work over processes so that any number of them gives one result.

Work is cut into the same batches whatever the number of processes, and each process takes every N-th batch. What they
find is summed. What they find of single facts, such as keys, goes to the processes that hold these facts: each holds as
many. Nothing is padded with repeats; a process without a share adds zeros.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor, distributed

T = TypeVar("T")


def process() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def rank_shard(batches: Iterable[T]) -> Iterator[T]:
    """This process's batches: every N-th of them."""
    rank, count = process()
    return islice(batches, rank, None, count)


def all_reduce(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Add the tensors up over all processes, in place; each process gets the same bits."""
    if process()[1] > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
    return tensors


def rank_slice(count: int) -> slice:
    """Which of so many facts are this process's share: contiguous, and as even as they can be."""
    rank, edges = process()[0], _edges(count)
    return slice(edges[rank], edges[rank + 1])


def _edges(count: int) -> list[int]:
    """Where the shares of so many facts begin, and where the last one ends."""
    processes = process()[1]
    return [count * rank // processes for rank in range(processes + 1)]


def all_to_all(found: Iterable[tuple[Sequence[int], Tensor]], none: Tensor, count: int) -> Tensor:
    """What processes have found of facts, each fact's at the process whose share it is.

    A process holds what it has found and what is its share, never all of it.

    Args:
        found: Of this process's batches, each once: which facts, and a row for each of them.
        none: No rows, of the shape and dtype that rows have.
        count: Number of all facts.

    Returns:
        The rows of this process's share, in order.
    """
    processes = process()[1]
    if processes == 1:
        rows = none.new_zeros(count, *none.shape[1:])
        for some, theirs in found:
            rows[some] = theirs
        return rows
    batches = list(found)
    facts = torch.tensor([fact for some, _ in batches for fact in some], dtype=torch.long, device=none.device)
    starts = torch.tensor(_edges(count)[:-1], device=none.device)
    order = facts.argsort()
    rows = torch.cat([none, *(rows for _, rows in batches)])[order]
    batches.clear()
    sent = (torch.searchsorted(starts, facts, right=True) - 1).bincount(minlength=processes)
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent)

    def exchanged(ours: Tensor) -> Tensor:
        theirs = ours.new_empty(int(received.sum()), *ours.shape[1:])
        distributed.all_to_all_single(theirs, ours, received.tolist(), sent.tolist())
        return theirs

    return exchanged(rows)[exchanged(facts[order]).argsort()]


def shares(rows: Tensor) -> Iterator[Tensor]:
    """The rows of every process, one process after the other, on all of them."""
    rank, processes = process()
    counts = torch.zeros(processes, dtype=torch.long, device=rows.device)
    counts[rank] = len(rows)
    for source, count in enumerate(all_reduce(counts)[0].tolist()):
        share = rows.contiguous() if source == rank else rows.new_empty(count, *rows.shape[1:])
        if processes > 1 and count:
            distributed.broadcast(share, source)
        yield share


def all_gather(rows: Tensor) -> Tensor:
    """The rows of all processes."""
    return rows if process()[1] == 1 else torch.cat(list(shares(rows)))


def gather_to_rank_zero(rows: Tensor) -> Tensor | None:
    """The rows of all processes, in main memory of the first one; ``None`` in the others."""
    is_first = process()[0] == 0
    found = [share.cpu() for share in shares(rows) if is_first]
    return torch.cat(found) if is_first else None


def all_reduce_max(tensor: Tensor) -> Tensor:
    """The largest of each entry over all processes, in place."""
    if process()[1] > 1:
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor


def all_gather_text(text: str, device: torch.device) -> list[list[int]]:
    """The characters of every process's text, by rank; the texts are equally long."""
    rank, count = process()
    table = torch.zeros(count, len(text), dtype=torch.long, device=device)
    table[rank] = torch.tensor([ord(character) for character in text])
    found: list[list[int]] = all_reduce(table)[0].tolist()
    return found


def check_identical(name: str, tensor: Tensor) -> None:
    """Stop if processes disagree about a tensor.

    Args:
        name: What to call it.
        tensor: Of the same shape on all processes.

    Raises:
        RuntimeError: It differs between processes, in a single bit.
    """
    count = process()[1]
    if count == 1:
        return
    reference = tensor.detach().clone(memory_format=torch.contiguous_format)
    distributed.broadcast(reference, src=0)
    differs = torch.tensor(0 if torch.equal(reference, tensor) else 1, device=tensor.device)
    distributed.all_reduce(differs)
    if differs.item():
        raise RuntimeError(f"{name} differs between processes ({int(differs)} of {count} disagree with the first).")
