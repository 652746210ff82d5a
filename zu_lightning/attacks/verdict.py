"""What the attacks add up to: how much more they find than in a model that never knew the facts."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Scores = Mapping[str, Tensor]
"""By name, the score of each of n facts, 0..1, NaN where an attack does not apply; more is more knowledge."""

DRAWS = 2000
"""Number of bootstrap samples of a confidence interval."""
ERASED = 0.05
"""A gap to gold of which even the upper end of the interval is below this counts as none."""


@dataclass(frozen=True)
class Interval:
    """A mean over facts with the 95% interval of a bootstrap over facts.

    Facts that all score alike have an interval of no width; with n facts, what fewer than 3 / n of them show can go
    unseen.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class AttackScore:
    """Mean of an attack's score over the facts, in each of the models that are compared.

    Attributes:
        edited: In the edited model.
        base: In the unedited one.
        gold: In one that never knew the facts; ``None`` without one.
        gap: Edited minus gold, fact by fact; ``None`` without gold.
    """

    edited: float
    base: float
    gold: float | None
    gap: Interval | None

    def numbers(self) -> dict[str, float]:
        """What there is, by name."""
        found = {"base": self.base, "edited": self.edited}
        if self.gold is not None and self.gap is not None:
            found |= {"gold": self.gold, "gap": self.gap.mean, "low": self.gap.low, "high": self.gap.high}
        return found


@dataclass(frozen=True)
class Verdict:
    """What all attacks found.

    Attributes:
        scores: By name.
        left: Mean over attacks of the gap to gold, each attack's scores counting together as one; ``None`` without
            gold.
        facts: Number of facts.
        attacks: Number of attacks.
    """

    scores: dict[str, AttackScore]
    left: Interval | None
    facts: int
    attacks: int

    @property
    def sentence(self) -> str:
        """One sentence that says it to somebody who knows nothing of attacks."""
        if self.left is None:
            return (
                f"{self.attacks} attacks on {self.facts} facts: without a model that never knew the facts "
                "(`attacks.gold`) nobody can tell what they find from what can be guessed."
            )
        found = (
            f"{100 * self.left.mean:.1f} points (95% interval {100 * self.left.low:.1f} to {100 * self.left.high:.1f})"
        )
        gaps = {name: score.gap.mean for name, score in self.scores.items() if score.gap is not None}
        strongest = max(gaps, key=gaps.__getitem__)
        if self.left.high < ERASED:
            return (
                f"Erased, as far as {self.attacks} attacks can tell: about the {self.facts} facts they find what "
                f"they find in a model that never knew them, up to {found}."
            )
        return (
            f"Masked, not erased: {self.attacks} attacks find more about the {self.facts} facts than in a model that "
            f"never knew them, {found} more; the strongest, {strongest}, {100 * gaps[strongest]:.0f} points more."
        )

    def scores_by_name(self) -> dict[str, dict[str, float]]:
        """For each score its mean in each model, and the gap with its interval, as in ``metrics.json``."""
        return {name: score.numbers() for name, score in self.scores.items()}


def verdict(edited: Scores, base: Scores, gold: Scores | None = None, seed: int = 0) -> Verdict:
    """Compare what attacks found in three models.

    Args:
        edited: Scores of the edited model.
        base: Scores of the unedited one.
        gold: Scores of one that never knew the facts.
        seed: Seed of the bootstrap.

    Returns:
        Means, gaps, and their intervals. A score that applies to no fact is left out.
    """
    names = [name for name, values in edited.items() if not values.isnan().all()]
    scores = {}
    for name in names:
        of_gold = None if gold is None else gold[name].nanmean().item()
        gap = None if gold is None else _interval(edited[name] - gold[name], seed)
        scores[name] = AttackScore(edited[name].nanmean().item(), base[name].nanmean().item(), of_gold, gap)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition("_")[0], []).append(name)
    left = None
    if gold is not None and names:
        gaps = [torch.stack([edited[name] - gold[name] for name in group]).nanmean(0) for group in groups.values()]
        left = _interval(torch.stack(gaps).nanmean(0), seed)
    return Verdict(scores, left, len(next(iter(edited.values()), [])), len(groups))


def _interval(values: Tensor, seed: int) -> Interval:
    """Mean of values, one per fact, with the percentiles of its bootstrap; NaN are left out."""
    known = values[~values.isnan()].double()
    drawn = torch.randint(len(known), (DRAWS, len(known)), generator=torch.Generator().manual_seed(seed))
    low, high = known[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(known.mean().item(), low, high)
