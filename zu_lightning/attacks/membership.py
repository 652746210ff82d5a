"""Membership inference: do the forgotten facts still look like what the model has read?"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.attacks.answers import AnswerLogprobs, reading, score_answers_by_fact
from zu_lightning.attacks.attack import NOTHING, Attack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import InputError

TIE = 1e-4
"""Differences of familiarity, in nats or standard deviations, up to which two statements look alike."""


@dataclass(frozen=True, kw_only=True)
class Membership(Attack):
    """Whether the statement of a fact can be told from made-up ones about unknown subjects, which nobody has read.

    A fact's score is the share of the statements about its unknown subjects that look less familiar, ties counting
    half: half of them by chance. Its mean over facts is the AUC of telling statements of the same relation apart.

    How familiar a statement looks is judged by its answer's tokens alone, since a name says nothing about a fact; on
    answers of one token, ``membership_loss`` and ``membership_min_k`` are therefore the same.

    - ``membership_loss``: mean log-probability (arXiv 1709.01604).
    - ``membership_min_k``: its mean over the least likely tokens (Min-K%, arXiv 2310.16789).
    - ``membership_min_k_plus_plus``: the same, standardized by what else might be said (Min-K%++, arXiv 2404.02936).
      Of a model that is sure of a fact it is near zero, so that a mere guess about a unknown subject can score more.
    - ``membership_reference``: the mean log-probability above that of a model that never knew (arXiv 2111.08440): what
      is likely for other reasons, such as a frequent answer, is so in both models and cancels.
    """

    name = "membership"

    share: float = 0.4
    """Share of an answer's tokens that Min-K% and Min-K%++ look at, rounded down, but one at least."""
    gold: tuple[tuple[float, ...], ...] | None = None
    """What a model that never knew says of the :func:`statements` of each fact, see :func:`reference`."""

    def __post_init__(self) -> None:
        """Refuse a wrong share."""
        if not 0 < self.share <= 1:
            raise InputError("share", self.share, "give a number above 0, and 1 at most.")

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Membership`."""
        names = ["membership_loss", "membership_min_k", "membership_min_k_plus_plus"]
        return names if self.gold is None else [*names, "membership_reference"]

    def tokens(self, exam: AttackContext) -> int:
        """Every statement once."""
        return reading(lambda i: statements(exam, i), range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact, the share of the statements about unknown subjects that look less familiar."""
        found = score_answers_by_fact(lm, lambda i: statements(exam, i), facts, exam.batch_tokens)
        of_facts = [self._familiarity(i, answers) for i, answers in zip(facts, found, strict=True)]
        return {
            name: [float(share_below(familiarity[kind])) for familiarity in of_facts]
            for kind, name in enumerate(self.names(exam))
        }

    def _familiarity(self, i: int, answers: Sequence[AnswerLogprobs]) -> Tensor:
        """Of a fact's statements by each of the ``names``, kinds x statements; more is more like a member."""
        loss = torch.tensor([answer.mean_log_probability for answer in answers], dtype=torch.float64)
        kinds = [loss]
        for values in ([answer.log_probability for answer in answers], [answer.standardized for answer in answers]):
            kinds.append(torch.tensor([float(_lowest(one, self.share).mean()) for one in values], dtype=torch.float64))
        if self.gold is not None:
            kinds.append(loss - torch.tensor(self.gold[i], dtype=torch.float64))
        return torch.stack(kinds)


def statements(exam: AttackContext, i: int) -> list[Query]:
    """The statement of a fact, then one about each of its unknown subjects, with an answer drawn from its relation's.

    The draw depends on the exam's seed and the fact only, so that all models are asked the same.
    """
    fact, rng = exam.facts[i], random.Random(f"{exam.seed} {exam.facts[i].id}")
    answers = (fact.target, *exam.answers[i])
    unknown_subjects = [
        replace(fact.about(name).query, target=rng.choice(answers)) for name in exam.unknown_subjects[i]
    ]
    return [fact.query, *unknown_subjects]


def share_below(scores: Tensor) -> Tensor:
    """The share of the others that score less than the first, ties counting half.

    What differs by less than rounding in another batch would change is a tie; gold beside itself is one.

    Args:
        scores: ... x (1 + others).

    Returns:
        Numbers between 0 and 1 of shape ..., float64; ``NOTHING`` without others.
    """
    above = scores[..., :1] - scores[..., 1:]
    ties = above.abs() <= TIE
    return ((above > TIE).double() + 0.5 * ties).mean(-1)


def reference(gold: EditableLM, exam: AttackContext) -> tuple[tuple[float, ...], ...]:
    """For each fact, the retain model's mean log-probability of each of its statements, 1 + unknown subjects."""
    found = score_answers_by_fact(gold, lambda i: statements(exam, i), range(len(exam.facts)), exam.batch_tokens)
    return tuple(tuple(answer.mean_log_probability for answer in answers) for answers in found)


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
