"""A request to forget: what goes, what stays, and the text that says what must not change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zu_lightning.errors import InputError
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import RetainText


@dataclass(frozen=True)
class Request:
    """One request to forget.

    Attributes:
        forget: Forget set.
        text: Retain text, for the second moments of the keys that must keep their values.
        protect: Facts to keep that the method is told of: their keys must keep their values, too.
        retain: Retain set: facts to keep that the method never sees, and that are only measured.
        known: All facts of the data set that these were drawn from.
        strangers: Subjects of whom the model knows nothing; without any, some are made up when they are needed.
        heldout: Text for the perplexity, one document each.
        seed: Seed of the context templates.
        number: Which request of a model this is, from 0.
        cache: Folder in which what other runs have computed is looked for and kept; ``None`` for no cache.
    """

    forget: Sequence[Fact]
    text: RetainText
    protect: Sequence[Fact] = ()
    retain: Sequence[Fact] = ()
    known: Sequence[Fact] = ()
    strangers: Sequence[str] = ()
    heldout: Sequence[str] = ()
    seed: int = 0
    number: int = 0
    cache: Path | None = None

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
