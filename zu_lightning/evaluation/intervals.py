"""Scores of single facts, and the intervals of their means.

Of each fact there are three sums: answers given, their probability, and answers asked for. Of a document: the negative
log-likelihood of its tokens, 0, and their number.
"""

import math

from scipy.stats import binomtest
from torch import Tensor

from zu_lightning.evaluation.bootstrap import interval as bootstrap
from zu_lightning.evaluation.score_table import SCORE


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
    """Intervals of the scores that are means over facts, in the scores' units."""
    intervals: dict[str, tuple[float, float]] = {}
    for name, sums in by_metric.items():
        low, high = interval(sums)
        if not math.isnan(low):
            match SCORE[name].unit:
                case "percent":
                    intervals[name] = (100 * low, 100 * high)
                case "nats":
                    intervals[name] = (low, high)
                case "perplexity":
                    intervals[name] = (math.exp(low), math.exp(high))
    return intervals
