"""Means over facts with confidence bands, by a bootstrap."""

from dataclasses import dataclass

import torch
from torch import Tensor

RESAMPLES = 1000
"""Draws of the bootstrap."""

CONFIDENCE = 0.95
"""Probability that the band of a mean covers it."""


@dataclass(frozen=True)
class Band:
    """A mean over facts and the interval in which 95% of the means of resampled facts lie; shapes agree."""

    mean: Tensor
    low: Tensor
    high: Tensor


def resampled_means(values: Tensor, seed: int = 0) -> Tensor:
    """Means over facts that are drawn again with replacement.

    Args:
        values: F x ..., with F at least 1; NaN where a fact says nothing.
        seed: Seed of the draws.

    Returns:
        draws x ..., float64; NaN where none of the drawn facts says anything.
    """
    count = len(values)
    drawn = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(RESAMPLES, count, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())
    flat = values.double().reshape(count, -1)
    means = weights @ flat.nan_to_num() / (weights @ (~flat.isnan()).double())
    return means.view(RESAMPLES, *values.shape[1:])


def band(values: Tensor, seed: int = 0) -> Band:
    """Mean over facts (F x ...) with its band, by a percentile bootstrap; NaN where no fact says anything.

    Example:
        >>> found = band(torch.tensor([0.0, 1.0, 1.0, 1.0]))
        >>> found.mean, bool(found.low < 0.75 < found.high)
        (tensor(0.7500, dtype=torch.float64), True)
    """
    values = values.double()
    if not len(values):
        nothing = values.new_full(values.shape[1:], torch.nan)
        return Band(nothing, nothing, nothing)
    tail = (1 - CONFIDENCE) / 2
    low, high = resampled_means(values, seed).nanquantile(torch.tensor([tail, 1 - tail]).double(), 0)
    return Band(values.nanmean(0), low, high)
