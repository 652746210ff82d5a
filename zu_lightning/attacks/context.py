"""What attackers know and ask: one context for the edited model, the unedited one, and a retain model."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from zu_lightning.editing.request import Request
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.facts.unknown_subjects import unknown_subjects_to_measure

T = TypeVar("T")

ANSWERS = 49
"""Maximum number of other answers of a relation."""
KEPT = 300
"""Maximum number of control facts of each relation."""


@dataclass(frozen=True)
class AttackContext:
    """Inputs of attacks on n forgotten facts; equal for all models that are compared.

    Attributes:
        facts: The facts that should be forgotten, n.
        answers: For each of them the other answers of its relation; empty if none are known.
        kept: For each of them control facts: facts of the same relation about other subjects, which the model should
            still know.
        unknown_subjects: For each of them made-up subjects of the same kind, which no model knows; empty if some fact
            has no subject.
        prose: Held-out text that is unrelated to the facts.
        seed: Seed of everything that attacks draw.
        batch_tokens: Maximum number of tokens per batch, padding included.
    """

    facts: Sequence[Fact]
    answers: Sequence[tuple[str, ...]]
    kept: Sequence[tuple[Fact, ...]]
    unknown_subjects: Sequence[tuple[str, ...]]
    prose: Sequence[str]
    seed: int = 0
    batch_tokens: int = BATCH_TOKENS

    @classmethod
    def of(cls, request: Request, number: int) -> "AttackContext":
        """The context of attacks on what a request forgets.

        Args:
            request: A request that holds all facts of its data set.
            number: Maximum number of facts, the first of those to forget.
        """
        facts, relations = request.forget[:number], request.relations
        subjects = {fact.subject for fact in request.forget}
        rng = random.Random(request.seed)
        kept = [_drawn(rng, [o for o in relations.of(fact) if o.subject not in subjects], KEPT) for fact in facts]
        unknown_subjects: list[tuple[str, ...]] = [()] * len(facts)
        if all(fact.subject for fact in facts):
            texts = chain(request.text.documents, request.text.corpus, request.heldout)
            unknown_subjects = unknown_subjects_to_measure(facts, relations, request.seed, texts)
        return cls(
            facts=facts,
            answers=[_drawn(rng, relations.other_answers(fact), ANSWERS) for fact in facts],
            kept=kept,
            unknown_subjects=unknown_subjects,
            prose=request.heldout,
            seed=request.seed,
            batch_tokens=request.text.reading.batch_tokens,
        )


def _drawn(rng: random.Random, items: Sequence[T], number: int) -> tuple[T, ...]:
    """At most ``number`` items, drawn."""
    return tuple(rng.sample(items, min(number, len(items))))
