"""Extraction strength: how little of an answer a model needs in order to complete it."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from zu_lightning.attacks.answers import AnswerLogprobs
from zu_lightning.attacks.attack import QueryAttack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query


@dataclass(frozen=True, kw_only=True)
class Extraction(QueryAttack):
    """``1 - k / T``: greedy decoding completes an answer of T tokens once it is given the first k.

    This is the extraction strength of arXiv 2406.09179, which goes back to arXiv 2012.07805. It is 1 if the prompt is
    enough, and 0 if not even the last token is right. A published implementation (open-unlearning) tries k only up to
    T - 1, and so gives 1/T to a model that is wrong everywhere: for an answer of one token 1, as if it were known.
    Words whose beginnings determine their ends are easy to extract: compare with a model that was never trained on the
    facts.
    """

    name = "extraction"

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """The prompt: one pass gives the result for every k."""
        return [context.facts[i].query]

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Extraction strength of the answer."""
        return {self.name: extraction_strength(answers[0].likeliest)}


def extraction_strength(likeliest: Tensor) -> float:
    """Share of an answer's tokens after the last one that is wrong.

    Args:
        likeliest: Of each token of the answer, whether no other is likelier.
    """
    return float(likeliest.flip(0).long().cumprod(0).double().mean())
