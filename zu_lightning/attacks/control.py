"""The control: a model that answers nothing at all has not forgotten, it is broken."""

from collections.abc import Sequence
from dataclasses import dataclass

from zu_lightning.attacks.answers import AnswerLogprobs
from zu_lightning.attacks.attack import QueryAttack, mean
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query

KEPT = "kept"
"""Name of the control's score, which is no attack's."""


@dataclass(frozen=True, kw_only=True)
class Control(QueryAttack):
    """Share of control facts that greedy decoding still answers: facts of the same relation about other subjects.

    Attributes:
        others: Number of control facts for each fact; fewer if there are not as many.
    """

    name = KEPT

    others: int = 5

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """Prompts of the control facts."""
        return [other.query for other in context.kept[i][: self.others]]

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Share of exact answers."""
        return {KEPT: mean([float(answer.exact) for answer in answers])}
