"""Exact memorization: the share of an answer that greedy decoding gives, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass

from zu_lightning.attacks.answers import AnswerLogprobs
from zu_lightning.attacks.attack import QueryAttack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query


@dataclass(frozen=True, kw_only=True)
class Memorization(QueryAttack):
    """Share of an answer's tokens that are the likeliest (arXiv 2205.10770).

    Each token is predicted from the prompt and the true tokens before it, so that one mistake does not spoil the rest.
    The share is high for long words whose beginnings determine their ends: compare with a model that was never trained
    on the facts.
    """

    name = "memorization"

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """The prompt."""
        return [context.facts[i].query]

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Share of tokens that are right."""
        return {self.name: float(answers[0].likeliest.double().mean())}
