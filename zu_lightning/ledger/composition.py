"""Updates of several requests, or of several teams, as one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from zu_lightning.evaluation.evaluate import evaluate, evaluation_batches
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.request import EarlierRequest
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.edits import apply_update, summed_update
from zu_lightning.solvers import LowRankUpdate

Updates = Mapping[int, LowRankUpdate]
"""By layer."""

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


def summed(several: Sequence[Updates]) -> dict[int, LowRankUpdate]:
    """The sum of several updates of a model, by layer."""
    layers = sorted({layer for one in several for layer in one})
    return {layer: summed_update([one[layer] for one in several if layer in one]) for layer in layers}


def updates_of(requests: Sequence[EarlierRequest]) -> dict[int, LowRankUpdate]:
    """What some requests added to a model, by layer."""
    return summed([{layer: one.update for layer, one in request.layers.items()} for request in requests])


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
        for updates in (own, summed(several)):
            with edited(lm, updates):
                scores.append(evaluate(lm, asked))
        found.append(Together(*scores))
    return found


@contextmanager
def edited(lm: EditableLM, updates: Updates) -> Iterator[None]:
    """Within this context the updates are in the weights."""
    before = {layer: lm.weight(layer).clone() for layer in updates}
    try:
        for layer, update in updates.items():
            apply_update(lm, layer, update)
        yield
    finally:
        for layer, weight in before.items():
            lm.set_weight(layer, weight)
