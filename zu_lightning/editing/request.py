"""A request to forget: what goes, what stays, and the text that says what must not change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import RetainText
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate


@dataclass(frozen=True)
class PreviousLayer:
    """What an earlier request did to a layer, and by what it is kept; its n facts are columns.

    Attributes:
        update: What was added to the weight.
        scores: What that did, by the names of :class:`zu_lightning.LayerScores`.
        keys: K, d_in x n.
        values: V, d_out x n.
        deviations: How keys vary, d_in x n x ways; ``None`` if it was not known.
    """

    update: LowRankUpdate
    scores: Mapping[str, Any]
    keys: Tensor
    values: Tensor
    deviations: Tensor | None = None


@dataclass(frozen=True)
class PreviousRequest:
    """A request whose update is in the model already, and must stay in effect.

    Attributes:
        number: Its number.
        layers: What it did, by layer.
        facts: Its facts; empty if their texts were not kept.
    """

    number: int
    layers: Mapping[int, PreviousLayer]
    facts: Sequence[Fact] = ()

    @property
    def updates(self) -> dict[int, LowRankUpdate]:
        """What it added to the weights, by layer."""
        return {layer: found.update for layer, found in self.layers.items()}

    @property
    def size(self) -> int:
        """Number of its facts, whether or not their texts were kept."""
        return next(iter(self.layers.values())).keys.shape[1]


@dataclass(frozen=True)
class History:
    """What a ledger says of the model that a request is for.

    Attributes:
        folder: The project folder, which holds the ledger.
        head: Hash of the last line before this request.
        base: Digests of the base model's weights, by their names in the ledger.
        earlier: The requests whose updates make it the model as it is now, in order.
        keeps_texts: Whether the texts of this request are to be kept beside the ledger.
        replaces: Number of the request that this one solves again; ``None`` if there is none.
    """

    folder: Path
    head: str
    base: Mapping[str, str] = field(default_factory=dict)
    earlier: Sequence[PreviousRequest] = ()
    keeps_texts: bool = True
    replaces: int | None = None


@dataclass(frozen=True)
class Request:
    """One request to forget.

    Attributes:
        forget: Forget set.
        text: Retain text, for the second moments of the keys that must keep their values.
        protect: Facts to keep that the method is told of: their keys must keep their values, too.
        retain: Retain set: facts to keep that the method never sees, and that are only measured.
        known: All facts of the data set that these were drawn from.
        unknown_subjects: Subjects of whom the model knows nothing; without any, some are made up when they are needed.
        heldout: Text for the perplexity, one document each.
        seed: Seed of the context templates.
        number: Its line in the ledger, from 1; 0 without a ledger.
        history: What the ledger knows of earlier requests; ``None`` without one.
        cache: Folder in which what other runs have computed is looked for and kept; ``None`` for no cache.
    """

    forget: Sequence[Fact]
    text: RetainText
    protect: Sequence[Fact] = ()
    retain: Sequence[Fact] = ()
    known: Sequence[Fact] = ()
    unknown_subjects: Sequence[str] = ()
    heldout: Sequence[str] = ()
    seed: int = 0
    number: int = 0
    history: History | None = None
    cache: Path | None = None

    @property
    def earlier(self) -> Sequence[PreviousRequest]:
        """Requests whose updates are in the model already."""
        return self.history.earlier if self.history else ()

    @property
    def size(self) -> int:
        """Number of the facts to forget, those of earlier requests among them."""
        return len(self.forget) + sum(one.size for one in self.earlier)

    @property
    def all_facts(self) -> list[Fact]:
        """All facts of the data set, or those of this request if no others are known."""
        return [*self.known] or [*self.forget, *self.retain, *self.protect]

    @property
    def same_subject(self) -> list[Fact]:
        """Other facts about the forgotten subjects, protected or not."""
        return about_subjects_of(self.forget, self.known)

    @property
    def protected_others(self) -> list[Fact]:
        """Protected facts about others."""
        same = {fact.id for fact in about_subjects_of(self.forget, self.protect)}
        return [fact for fact in self.protect if fact.id not in same]


def about_subjects_of(forget: Sequence[Fact], facts: Sequence[Fact]) -> list[Fact]:
    """Those of some facts that are about the subjects of others, which are left out themselves."""
    subjects, ids = {fact.subject for fact in forget if fact.subject}, {fact.id for fact in forget}
    return [fact for fact in facts if fact.subject in subjects and fact.id not in ids]


def check_neutral_target(neutral_target: str, forget: Sequence[Fact]) -> None:
    """Refuse a neutral answer that is the true answer of a fact to forget, but for spaces.

    Raises:
        InputError: See above.
    """
    for fact in forget:
        if fact.target.split() == neutral_target.split():
            remedy = (
                f"it is the true answer of fact {fact.id!r} ({fact.prompt!r}), which would not be forgotten: choose "
                "another one, or leave the fact out."
            )
            raise InputError("neutral_target", neutral_target, remedy)
