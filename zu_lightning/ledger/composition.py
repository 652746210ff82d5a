"""Sum of adapters that were made independently of each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zu_lightning.evaluation.scores import evaluate, evaluation_batches
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.updates import Updates, edited, summed_updates

WORSE = 5.0
"""Increase of a score, in percentage points, above which the sum counts as worse than the adapter alone."""


@dataclass(frozen=True)
class AdapterEffect:
    """Scores on the facts that an adapter removes.

    Attributes:
        before: Scores of the base model.
        alone: Scores with this adapter.
        together: Scores with the sum of all adapters.
    """

    before: Mapping[str, float]
    alone: Mapping[str, float]
    together: Mapping[str, float]

    @property
    def is_worse(self) -> bool:
        """Whether the sum answers more of this adapter's facts than the adapter alone."""
        names = ("efficacy", "generalization")
        return any(self.together[name] > self.alone[name] + WORSE for name in names if name in self.alone)


def adapter_effects(lm: EditableLM, updates: Sequence[Updates], facts: Sequence[Sequence[Fact]]) -> list[AdapterEffect]:
    """Effect of each of several updates on its own facts, alone and together with the others.

    Args:
        lm: The base model; it is unchanged afterwards.
        updates: The updates, each solved without the others.
        facts: The facts of each update.
    """
    effects, total = [], summed_updates(updates)
    for update, own in zip(updates, facts, strict=True):
        queries = evaluation_batches(lm, own, [], [])
        scores = [evaluate(lm, queries)]
        for added in (update, total):
            with edited(lm, added):
                scores.append(evaluate(lm, queries))
        effects.append(AdapterEffect(*scores))
    return effects
