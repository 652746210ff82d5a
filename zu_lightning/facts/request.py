"""A request to forget: what goes, what stays, and the text that says what must not change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
        """Facts about the forgotten subjects that are neither forgotten nor protected."""
        subjects = {fact.subject for fact in self.forget if fact.subject}
        told_of = {fact.id for fact in (*self.forget, *self.protect)}
        return [fact for fact in self.known if fact.subject in subjects and fact.id not in told_of]
