"""What every attack shares: scores of single facts, so that models can be compared fact by fact."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.distributed import all_reduce, rank_shard

NOTHING = float("nan")
"""The score of a fact to which an attack does not apply, such as a rank among no other answers."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A way to find out what a model still knows.

    Scores lie between 0 and 1, and a model that knows more has higher ones: for each fact what share of an attacker's
    tries succeeds, or how much of the answer is found.
    """

    name: ClassVar[str]
    """What its scores' names begin with."""

    @abstractmethod
    def tokens(self, exam: AttackContext) -> int:
        """About how many tokens the model reads: a pass that trains counts three times."""

    @abstractmethod
    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each kind of score, that of each of some facts of the exam, given by their indices.

        The model is left as it was. The names do not depend on the facts.
        """

    def __call__(self, lm: EditableLM, exam: AttackContext) -> dict[str, Tensor]:
        """For each kind of score, that of all n facts, float64; processes share the facts."""
        mine = list(rank_shard(range(len(exam.facts))))
        names, found = self.names(exam), self.scores(lm, exam, mine) if mine else {}
        scores = torch.zeros(len(names), len(exam.facts), dtype=torch.float64, device=lm.device)
        for row, name in enumerate(names):
            if mine:
                scores[row, mine] = torch.tensor(found[name], dtype=torch.float64, device=lm.device)
        return dict(zip(names, all_reduce(scores)[0].cpu(), strict=True))

    @abstractmethod
    def names(self, exam: AttackContext) -> list[str]:
        """Names of its scores, each beginning with ``name``."""


def words(text: str) -> int:
    """About how many tokens a text has."""
    return len(text) // 4 + 1


def mean(values: Sequence[float]) -> float:
    """Mean, or ``NOTHING`` of none."""
    return sum(values) / len(values) if values else NOTHING
