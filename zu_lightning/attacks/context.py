"""What attackers know and ask: one exam for the edited model, the unedited one, and one that never knew."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from zu_lightning.editing.request import Request
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.relations import by_relation, other_answers
from zu_lightning.facts.unknown_subjects import unknown_subjects_for

T = TypeVar("T")

OTHER_SEED = 1_000_003
"""What is added to the request's seed, with which targets draw their unknown subjects."""
UNKNOWN_SUBJECTS = 20
"""Number of made-up subjects for each fact."""
ANSWERS = 49
"""Maximum number of other answers of a relation."""
KEPT = 300
"""Maximum number of kept facts of each relation."""


@dataclass(frozen=True)
class AttackContext:
    """What attacks on n forgotten facts need; equal for all models that are compared.

    Attributes:
        facts: The facts that should be forgotten, n.
        answers: For each of them the other answers of its relation, its own left out; empty if none are known.
        kept: For each of them facts of the same relation about others, which the model should still know.
        unknown_subjects: For each of them made-up subjects of the same kind, of which no model knows anything; empty if
            some fact has no subject.
        prose: Held-out text that says nothing about the facts.
        seed: Seed of everything that attacks draw.
        batch_tokens: Maximum number of tokens per batch, padding included.
    """

    facts: Sequence[Fact]
    answers: Sequence[tuple[str, ...]]
    kept: Sequence[tuple[Fact, ...]]
    unknown_subjects: Sequence[tuple[str, ...]]
    prose: Sequence[str]
    seed: int = 0
    batch_tokens: int = 2048

    @classmethod
    def of(cls, request: Request, number: int) -> "AttackContext":
        """The exam on what a request asks to forget.

        Args:
            request: A request with all facts of its data set in ``known``.
            number: Maximum number of facts, the first of those to forget.
        """
        facts, known = request.forget[:number], request.all_facts
        subjects = {fact.subject for fact in request.forget}
        group = {fact.id: others for others in by_relation(known).values() for fact in others}
        kept = [tuple(other for other in group[fact.id] if other.subject not in subjects) for fact in facts]
        rng = random.Random(request.seed)
        kept = [_drawn(rng, others, KEPT) for others in kept]
        unknown_subjects: list[tuple[str, ...]] = [()] * len(facts)
        if all(fact.subject for fact in facts):
            texts = chain(request.text.documents, request.text.corpus, request.heldout)
            # Not those that targets are made of, who are drawn with the request's seed.
            unknown_subjects = unknown_subjects_for(facts, known, UNKNOWN_SUBJECTS, request.seed + OTHER_SEED, texts)
        return cls(
            facts=facts,
            answers=[_drawn(rng, answers, ANSWERS) for answers in other_answers(facts, known)],
            kept=kept,
            unknown_subjects=unknown_subjects,
            prose=request.heldout,
            seed=request.seed,
            batch_tokens=request.text.reading.batch_tokens,
        )


def _drawn(rng: random.Random, items: Sequence[T], number: int) -> tuple[T, ...]:
    """At most a number of items, drawn."""
    return tuple(rng.sample(items, min(number, len(items))))
