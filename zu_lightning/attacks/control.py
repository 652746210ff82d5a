"""The control: a model that says nothing any more has not forgotten, it is broken."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zu_lightning.attacks.answers import reading, score_answers_by_fact
from zu_lightning.attacks.attack import Attack, mean
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM

KEPT = "kept"
"""Name of the control's score, which is no attack's."""


@dataclass(frozen=True, kw_only=True)
class Control(Attack):
    """What share of facts about others, of the same relation, the model still answers: all of them would be best.

    Attributes:
        others: Number of facts about others for each fact; fewer if there are not as many.
    """

    name = KEPT

    others: int = 5

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Control`."""
        return [KEPT]

    def tokens(self, exam: AttackContext) -> int:
        """Every question with its answer."""
        return reading(lambda i: self._queries(exam, i), range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact the share of its others that greedy decoding answers."""
        answers = score_answers_by_fact(lm, lambda i: self._queries(exam, i), facts, exam.batch_tokens)
        return {KEPT: [mean([float(answer.exact) for answer in of_fact]) for of_fact in answers]}

    def _queries(self, exam: AttackContext, i: int) -> list[Query]:
        return [other.query for other in exam.kept[i][: self.others]]
