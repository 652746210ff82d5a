"""Sharing work over processes so that any number of them gives one result.

Work is cut into the same batches whatever the number of processes, each process takes every N-th batch, and what they
find is summed. Nothing is padded with repeats; a process without a share adds zeros.
"""

from collections.abc import Iterable, Iterator
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


def own_share(batches: Iterable[T]) -> Iterator[T]:
    """This process's batches: every N-th of them."""
    rank, count = process()
    return islice(batches, rank, None, count)


def summed(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Add the tensors up over all processes, in place; each process gets the same bits."""
    if process()[1] > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
    return tensors


def largest(tensor: Tensor) -> Tensor:
    """The largest of each entry over all processes, in place."""
    if process()[1] > 1:
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
    return tensor


def all_of(text: str, device: torch.device) -> list[list[int]]:
    """The characters of every process's text, by rank; the texts are equally long."""
    rank, count = process()
    table = torch.zeros(count, len(text), dtype=torch.long, device=device)
    table[rank] = torch.tensor([ord(character) for character in text])
    found: list[list[int]] = summed(table)[0].tolist()
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
