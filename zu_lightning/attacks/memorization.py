"""Exact memorization: how much of an answer greedy decoding gives, token by token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zu_lightning.attacks.answers import reading, score_answers_by_fact
from zu_lightning.attacks.attack import Attack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.editable import EditableLM


@dataclass(frozen=True, kw_only=True)
class Memorization(Attack):
    """The share of an answer's tokens that are the likeliest (arXiv 2205.10770).

    Each token is asked for after the prompt and the answer's true tokens before it, so that a wrong one does not spoil
    those after it. It is high for long words whose beginnings give away their ends: compare with a model that never
    knew.
    """

    name = "memorization"

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Memorization`."""
        return ["memorization"]

    def tokens(self, exam: AttackContext) -> int:
        """Each prompt with its answer."""
        return reading(lambda i: [exam.facts[i].query], range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact one share."""
        answers = score_answers_by_fact(lm, lambda i: [exam.facts[i].query], facts, exam.batch_tokens)
        return {"memorization": [float(answer.likeliest.double().mean()) for (answer,) in answers]}
