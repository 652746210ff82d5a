"""A request to forget: what goes, what stays, what is only measured, and the retain text."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from zu_lightning.editing.method import Method
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.relations import Relations
from zu_lightning.facts.splits import split_facts
from zu_lightning.facts.texts import ReadingOptions, RetainText, retain_documents
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreviousLayer:
    """A previous request at one layer: its update, and what keeps it in effect; its n facts are columns.

    Attributes:
        update: What was added to the weight.
        scores: Its effect, by the names of :class:`zu_lightning.LayerScores`.
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
    """State of a project's ledger before a request.

    Attributes:
        folder: The project folder, which holds the ledger.
        head: Hash of the last line before this request.
        base: Digests of the base model's weights, by their names in the ledger.
        previous: The requests whose updates make it the model as it is now, in order.
        keeps_texts: Whether the texts of this request are to be kept beside the ledger.
        replaces: Number of the request that this one solves again; ``None`` if there is none.
    """

    folder: Path
    head: str
    base: Mapping[str, str] = field(default_factory=dict)
    previous: Sequence[PreviousRequest] = ()
    keeps_texts: bool = True
    replaces: int | None = None


@dataclass(frozen=True)
class Request:
    """One request to forget.

    Attributes:
        forget: Forget set.
        text: Retain text, for the second moments of the keys that must keep their values.
        protect: Facts that the method must preserve: their keys must keep their values, too.
        retain: Retain set: facts that should stay, are never shown to the method, and are only measured.
        known: All facts of the data set that these were drawn from.
        unknown_subjects: Subjects that the model knows nothing about; without any, some are made up when needed.
        heldout: Text for the perplexity, one document each.
        seed: Seed of the context templates.
        number: Its line in the ledger, from 1; 0 without a ledger.
        history: Previous requests, from the ledger; ``None`` without one.
        cache: Folder in which runs share results; ``None`` for no cache.
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

    @classmethod
    def draw(
        cls,
        facts: Sequence[Fact],
        corpus: Sequence[str],
        *,
        method: Method = Method(),
        forget: int | Sequence[str] = 10,
        retain: int | Sequence[str] = 200,
        protect: int | Sequence[str] | None = None,
        protect_same_subject: bool | None = None,
        heldout: Sequence[str] | None = None,
        reading: ReadingOptions = ReadingOptions(),
        by_record: bool = False,
        seed: int = 0,
        answered: Sequence[Fact] | None = None,
        **options: Any,
    ) -> "Request":
        """Draw a request from the facts of a data set.

        Args:
            facts: All facts.
            corpus: Retain text, one document each; documents that name a forgotten subject are left out.
            method: The method, which says how many facts to protect.
            forget: How many facts to forget, drawn by seed, or their ids.
            retain: How many facts to measure only, drawn by seed, or their ids.
            protect: How many facts the method must preserve, drawn by seed, or their ids; by default as many as the
                method says, and as are left.
            protect_same_subject: Whether all other facts about the forgotten subjects are protected, too, except those
                that are only measured; by default what the method says.
            heldout: Text for the perplexity. By default the last tenth of the corpus, which is then not used for
                anything else.
            reading: How much text is read, and in what batches.
            by_record: Whether whole records are drawn.
            seed: Seed of the draw and of the context templates.
            answered: The facts that the model answers (:func:`zu_lightning.known_facts`): only these are drawn, while
                ids may name any, and all facts give relations their prompts, answers, and names. By default all.
            options: Other attributes of the request.

        Raises:
            InputError: There are too few facts, an id does not exist, or every document names a forgotten subject.
        """
        number = method.protect_num if protect is None else protect
        forgotten, retained, protected = split_facts(
            facts, forget, retain, number,
            seed=seed, split_halves=method.release.split_halves, by_record=by_record, answered=answered,
        )  # fmt: skip
        if method.protect_same_subject if protect_same_subject is None else protect_same_subject:
            drawable = facts if answered is None else answered
            taken = {fact.id for fact in (*retained, *protected)}
            protected += [fact for fact in about_subjects_of(forgotten, drawable) if fact.id not in taken]
        log.info(
            "%d facts to forget, %d to measure only, %d more to protect", len(forgotten), len(retained), len(protected)
        )
        documents = retain_documents(corpus, forgotten)
        if corpus and not documents:
            raise InputError(
                "corpus", f"{len(corpus)} documents", "every document names a forgotten subject: add retain text."
            )
        if corpus:
            log.info(
                "%d documents of retain text (%d more name a forgotten subject and are left out)",
                len(documents), len(corpus) - len(documents),
            )  # fmt: skip
        if heldout is None:
            split = len(documents) - len(documents) // 10
            documents, heldout = documents[:split], documents[split:]
            # Wherever a draw's last tenth begins: what all draws keep ends near here.
            corpus = corpus[: len(corpus) - len(corpus) // 10]
        return cls(
            forget=forgotten,
            text=RetainText(documents, reading, corpus),
            protect=protected,
            retain=retained,
            known=facts,
            heldout=heldout[: reading.heldout_documents],
            seed=seed,
            **options,
        )

    @property
    def previous(self) -> Sequence[PreviousRequest]:
        """Requests whose updates are in the model already."""
        return self.history.previous if self.history else ()

    @property
    def size(self) -> int:
        """Number of the facts to forget, those of previous requests included."""
        return len(self.forget) + sum(one.size for one in self.previous)

    @property
    def all_facts(self) -> list[Fact]:
        """All facts of the data set, or those of this request if no others are known."""
        return [*self.known] or [*self.forget, *self.retain, *self.protect]

    @cached_property
    def relations(self) -> Relations:
        """All facts, grouped by relation."""
        return Relations(self.all_facts)

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
