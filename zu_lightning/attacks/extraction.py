"""Extraction strength: how little of an answer a model must be given to say the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from zu_lightning.attacks.answers import reading, score_answers_by_fact
from zu_lightning.attacks.attack import Attack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.editable import EditableLM


@dataclass(frozen=True, kw_only=True)
class Extraction(Attack):
    """``1 - k / T``: greedy decoding says the rest of an answer of T tokens once it is given the first k.

    This is the extraction strength of arXiv 2406.09179, which goes back to arXiv 2012.07805. It is 1 if the prompt is
    enough, and 0 if not even the last token is right. A published implementation (open-unlearning) tries k no further
    than T - 1, and so gives 1/T to a model that is wrong everywhere: to an answer of one token 1, as if it were known.
    Words whose beginnings give away their ends are easy to extract: compare with a model that never knew.
    """

    name = "extraction"

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Extraction`."""
        return ["extraction"]

    def tokens(self, exam: AttackContext) -> int:
        """Each prompt with its answer: one pass tells of every k."""
        return reading(lambda i: [exam.facts[i].query], range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact one strength."""
        answers = score_answers_by_fact(lm, lambda i: [exam.facts[i].query], facts, exam.batch_tokens)
        return {"extraction": [extraction_strength(answer.likeliest) for (answer,) in answers]}


def extraction_strength(likeliest: Tensor) -> float:
    """The share of tokens at the end that are all right.

    Args:
        likeliest: Of each token of an answer, whether no other is likelier.
    """
    return float(likeliest.flip(0).long().cumprod(0).double().mean())
