"""Membership inference: do the forgotten facts still look like what the model has read?"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from zu_lightning.attacks.asking import Told, asked, told
from zu_lightning.attacks.attack import NOTHING, Attack, words
from zu_lightning.attacks.exam import Exam
from zu_lightning.errors import InputError
from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM


@dataclass(frozen=True, kw_only=True)
class Membership(Attack):
    """Whether the statement of a fact can be told from made-up ones about strangers, which nobody has read.

    A fact's score is the share of the statements about its strangers that look less familiar, ties counting half: half
    of them by chance. Its mean over facts is the AUC of telling statements of the same relation apart.

    How familiar a statement looks is judged by its answer's tokens alone, since a name says nothing about a fact; on
    answers of one token, ``membership_loss`` and ``membership_min_k`` are therefore the same.

    - ``membership_loss``: mean log-probability (arXiv 1709.01604).
    - ``membership_min_k``: its mean over the least likely tokens (Min-K%, arXiv 2310.16789).
    - ``membership_min_k_plus_plus``: the same, standardized by what else might be said (Min-K%++, arXiv 2404.02936).
      Of a model that is sure of a fact it is near zero, so that a mere guess about a stranger can score more.
    """

    name = "membership"

    share: float = 0.4
    """Share of an answer's tokens that Min-K% and Min-K%++ look at, rounded down, but one at least."""

    def __post_init__(self) -> None:
        """Refuse a wrong share."""
        if not 0 < self.share <= 1:
            raise InputError("share", self.share, "give a number above 0, and 1 at most.")

    def names(self, exam: Exam) -> list[str]:
        """See :class:`Membership`."""
        return ["membership_loss", "membership_min_k", "membership_min_k_plus_plus"]

    def tokens(self, exam: Exam) -> int:
        """Every statement once."""
        queries, _ = asked(lambda i: statements(exam, i), range(len(exam.facts)))
        return sum(words(query.prompt + query.target) for query in queries)

    def scores(self, lm: EditableLM, exam: Exam, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact the share of the strangers' statements that look less familiar; none without strangers."""
        queries, counts = asked(lambda i: statements(exam, i), facts)
        familiarity = torch.tensor(
            [self._familiarity(answer) for answer in told(lm, queries, exam.batch_tokens)], dtype=torch.float64
        )
        slices = list(pairwise(accumulate(counts, initial=0)))
        return {
            name: [float(share_below(familiarity[start:end, kind])) for start, end in slices]
            for kind, name in enumerate(self.names(exam))
        }

    def _familiarity(self, answer: Told) -> tuple[float, float, float]:
        """By each of the ``names``; more is more like a member."""
        return (
            answer.mean_log_probability,
            float(_lowest(answer.log_probability, self.share).mean()),
            float(_lowest(answer.standardized, self.share).mean()),
        )


def statements(exam: Exam, i: int) -> list[Query]:
    """The statement of a fact, then one about each of its strangers, with an answer drawn from its relation's.

    The draw depends on the exam's seed and the fact only, so that all models are asked the same.
    """
    fact, rng = exam.facts[i], random.Random(f"{exam.seed} {exam.facts[i].id}")
    answers = (fact.target, *exam.answers[i])
    strangers = [replace(fact.about(name).query, target=rng.choice(answers)) for name in exam.strangers[i]]
    return [fact.query, *strangers]


def share_below(scores: Tensor) -> Tensor:
    """The share of the others that score less than the first, ties counting half.

    Args:
        scores: ... x (1 + others).

    Returns:
        Numbers between 0 and 1 of shape ..., float64; ``NOTHING`` without others.
    """
    first, others = scores[..., :1], scores[..., 1:]
    return ((first > others).double() + 0.5 * (first == others)).mean(-1)


def reference_membership(edited: Tensor, gold: Tensor) -> Tensor:
    """Membership by the likelihood ratio to a model that never knew (the reference attack, arXiv 2111.08440).

    What is likely for other reasons, such as a frequent answer, is so in both models and cancels.

    Args:
        edited: Mean log-probability of the answers of n facts and their strangers' :func:`statements`, by the model
            that is judged, n x (1 + strangers).
        gold: The same by a model that never knew the facts.

    Returns:
        For each fact the share of the strangers' statements whose ratio is lower, n; its mean over facts is the AUC.
    """
    return share_below(edited - gold)


def privleak(auc: float, gold: float) -> float:
    """How far membership is from that of a model that never knew, in percent (MUSE, arXiv 2407.06460).

    Args:
        auc: AUC of telling the forgotten facts from what nobody has read, 1 if they are always more familiar.
        gold: The same for a model that never knew them.

    Returns:
        ((1 - auc) - (1 - gold)) / (1 - gold) x 100: zero for a model like gold, down to -100 for one that gives all
        facts away, positive for one that shows by its avoidance what it was to forget. ``NOTHING`` if gold is 1: what
        tells the facts apart is then not that somebody has read them.
    """
    return ((1 - auc) - (1 - gold)) / (1 - gold) * 100 if gold < 1 else NOTHING


def _lowest(values: Tensor, share: float) -> Tensor:
    return values.sort().values[: max(1, int(share * len(values)))]
