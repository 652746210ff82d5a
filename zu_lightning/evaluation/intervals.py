"""Scores of single facts, and the intervals of their means."""

import math
from collections.abc import Iterable

import torch
from scipy.stats import binomtest
from torch import Tensor

from zu_lightning.evaluation.bootstrap import interval as bootstrap
from zu_lightning.runtime.distributed import all_reduce, all_reduce_max

COLUMNS = 3
"""For a fact: answers given, their probability, and answers asked for. For a document: the negative log-likelihood of
its tokens, 0, and their number."""


class FactScores:
    """Contributions of single facts to the scores, collected batch by batch.

    Args:
        metrics: Names of all metrics, the same ones in every process.
    """

    def __init__(self, metrics: Iterable[str]) -> None:
        self.sums = {name: torch.zeros(0, COLUMNS, dtype=torch.float64) for name in metrics}
        """By metric, facts x 3; as long as the facts that this process has seen."""

    def add(self, metric: str, fact: Tensor, given: Tensor, probability: Tensor, possible: Tensor) -> None:
        """Add texts, each about a fact: one entry a text."""
        sums, new = self.sums[metric], torch.stack([given, probability, possible], 1).double().cpu()
        length = max(len(sums), int(fact.max()) + 1)
        longer = torch.cat([sums, sums.new_zeros(length - len(sums), COLUMNS)])
        self.sums[metric] = longer.index_add(0, fact.cpu(), new)

    def over_all_processes(self, device: torch.device) -> dict[str, Tensor]:
        """The sums of all processes, by metric, facts x 3, on the CPU; metrics that saw nothing are left out."""
        lengths = all_reduce_max(torch.tensor([len(sums) for sums in self.sums.values()], device=device)).tolist()
        total: dict[str, Tensor] = {}
        for (name, own), length in zip(self.sums.items(), lengths, strict=True):
            if length:
                padded = torch.cat([own, own.new_zeros(length - len(own), COLUMNS)]).to(device)
                total[name] = all_reduce(padded)[0].cpu()
        return total


def shares(sums: Tensor) -> Tensor:
    """Share of each fact's answers that were given, n, 0..1; NaN for facts without queries.

    Args:
        sums: Of the facts, n x 3.
    """
    return sums[:, 0] / sums[:, 2]


def interval(sums: Tensor, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean over answers (or tokens), by a bootstrap over facts (or documents).

    If all facts agree that nothing, or everything, was given, a bootstrap has no spread: then the interval is that of
    Clopper and Pearson (1934).

    Args:
        sums: Of the facts, n x 3.
        seed: Seed of the bootstrap.

    Returns:
        Its low and its high end; NaN for one fact, or several that agree on another share.
    """
    asked = sums[sums[:, 2] > 0]
    n, share = len(asked), shares(asked)
    if n and ((share == 0).all() or (share == 1).all()):
        ends = binomtest(int(share.sum()), n).proportion_ci()
        return float(ends.low), float(ends.high)
    if n < 2 or (share == share[0]).all():
        return float("nan"), float("nan")
    ends = bootstrap(asked[:, 0], asked[:, 2], seed)
    return ends.low.item(), ends.high.item()


def score_intervals(by_metric: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Intervals of the scores that are means over facts, in the scores' units: percent, or perplexity."""
    intervals: dict[str, tuple[float, float]] = {}
    for name, sums in by_metric.items():
        low, high = interval(sums)
        if not math.isnan(low):
            intervals[name] = (math.exp(low), math.exp(high)) if name == "perplexity" else (100 * low, 100 * high)
    return intervals
