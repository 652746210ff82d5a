"""Updates of several requests, or of several teams, as one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zu_lightning.evaluation.scores import evaluate, evaluation_batches
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.updates import Updates, edited, summed_updates

WORSE = 5.0
"""Percent of its facts' questions that an adapter may answer more in company than alone before that is said."""


@dataclass(frozen=True)
class Together:
    """What an adapter does to its own facts.

    Attributes:
        before: Scores of the base model on these facts.
        alone: With this adapter.
        together: With the sum of all adapters.
    """

    before: Mapping[str, float]
    alone: Mapping[str, float]
    together: Mapping[str, float]

    @property
    def is_worse(self) -> bool:
        """Whether the model answers more of what this adapter took away when the others are there."""
        names = ("efficacy", "generalization")
        return any(self.together[name] > self.alone[name] + WORSE for name in names if name in self.alone)


def effects(lm: EditableLM, several: Sequence[Updates], facts: Sequence[Sequence[Fact]]) -> list[Together]:
    """What each of several updates does to its own facts, alone and in the company of the others.

    Args:
        lm: The base model; it is left as it was.
        several: The updates, each solved without knowing of the others.
        facts: The facts of each of them.
    """
    found = []
    for own, about in zip(several, facts, strict=True):
        asked = evaluation_batches(lm, about, [], [])
        scores = [evaluate(lm, asked)]
        for updates in (own, summed_updates(several)):
            with edited(lm, updates):
                scores.append(evaluate(lm, asked))
        found.append(Together(*scores))
    return found
