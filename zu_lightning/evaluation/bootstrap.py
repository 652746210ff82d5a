"""The bootstrap: how far a mean over facts may be from that of other facts."""

from dataclasses import dataclass

import torch
from torch import Tensor

DRAWS = 2000
"""Number of times that facts are drawn again."""
TAIL = 0.025
"""Share of the draws below an interval, and above it."""


@dataclass(frozen=True)
class Interval:
    """A mean over facts with its 95% interval, three float64 tensors of the same shape.

    Facts that all score alike have an interval of no width; with n facts, what fewer than 3 / n of them show can go
    unseen.
    """

    mean: Tensor
    low: Tensor
    high: Tensor


def resampled_means(values: Tensor, counts: Tensor | None = None, seed: int = 0) -> Tensor:
    """Means over facts that are drawn again with replacement.

    One draw at a time: unlike ``scipy.stats.bootstrap``, this needs no memory for draws x facts x values.

    Args:
        values: The sum of each fact's values, F x ..., with F at least 1; NaN where a fact says nothing.
        counts: The number of each fact's values, in the same shape; one each if not given.
        seed: Seed of the draws.

    Returns:
        draws x ..., float64; NaN where none of the drawn facts says anything.
    """
    values, facts = values.double(), len(values)
    counts = (~values.isnan()).double() if counts is None else counts.double()
    both = torch.stack([values.nan_to_num(), counts], -1)
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(facts, (facts,), generator=generator).bincount(minlength=facts) for _ in range(DRAWS))
    sums = torch.stack([times.double() @ both.view(facts, -1) for times in drawn])
    total, count = sums.view(DRAWS, *both.shape[1:]).unbind(-1)
    return total / count


def interval(values: Tensor, counts: Tensor | None = None, seed: int = 0) -> Interval:
    """Mean over facts with the percentiles of its bootstrap; NaN where no fact says anything.

    Takes the arguments of :func:`resampled_means`, and also no facts at all.

    Example:
        >>> found = interval(torch.tensor([0.0, 1.0, 1.0, 1.0]))
        >>> found.mean, bool(found.low < 0.75 < found.high)
        (tensor(0.7500, dtype=torch.float64), True)
    """
    values = values.double()
    if not len(values):
        nothing = values.new_full(values.shape[1:], torch.nan)
        return Interval(nothing, nothing, nothing)
    mean = values.nanmean(0) if counts is None else values.sum(0) / counts.double().sum(0)
    tails = torch.tensor([TAIL, 1 - TAIL], dtype=torch.float64)
    return Interval(mean, *resampled_means(values, counts, seed).nanquantile(tails, 0))
