"""Membership inference: whether the forgotten facts still look like training data."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from zu_lightning.attacks.answers import AnswerLogprobs, score_answers_by_fact
from zu_lightning.attacks.attack import UNDEFINED, QueryAttack, share_below
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import InputError

TIE = 1e-4
"""Differences of familiarity, in nats or standard deviations, that count as ties: those that rounding in another batch
could make, and none between the retain model and itself."""


@dataclass(frozen=True, kw_only=True)
class Membership(QueryAttack):
    """Whether the statement of a fact can be told apart from statements about made-up subjects.

    A fact's score is the share of the statements about unknown subjects that look less familiar, ties counting half:
    0.5 by chance. Its mean over facts is the AUC of telling statements of the same relation apart. Familiarity is
    measured on the answer's tokens alone, since a name is no evidence for a fact; on answers of one token,
    ``membership_loss`` and ``membership_min_k`` are therefore the same.

    - ``membership_loss``: mean log-probability (arXiv 1709.01604).
    - ``membership_min_k``: its mean over the least likely tokens (Min-K%, arXiv 2310.16789).
    - ``membership_min_k_plus_plus``: the same, standardized by the next-token distribution (Min-K%++, arXiv
      2404.02936). For a fact that the model is sure of it is near zero, so that a mere guess can score more.
    - ``membership_reference``: the mean log-probability minus that of a model that was never trained on the facts
      (arXiv 2111.08440): what is likely for other reasons, such as a frequent answer, is so in both models and cancels.
    """

    name = "membership"

    share: float = 0.4
    """Share of an answer's tokens that Min-K% and Min-K%++ use, rounded down, but at least one token."""
    reference: tuple[tuple[float, ...], ...] | None = None
    """For each fact, the retain model's log-probabilities of its :func:`statements`, see :func:`reference`."""

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.share <= 1:
            raise InputError("share", self.share, "give a number above 0, and 1 at most.")

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """All statements."""
        return statements(context, i)

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Share of less familiar statements, for each measure of familiarity."""
        loss = [answer.mean_log_probability for answer in answers]
        familiarity = {
            "membership_loss": loss,
            "membership_min_k": [self._min_k(answer.log_probability) for answer in answers],
            "membership_min_k_plus_plus": [self._min_k(answer.standardized) for answer in answers],
        }
        if self.reference is not None:
            pairs = zip(loss, self.reference[i], strict=True)
            familiarity["membership_reference"] = [own - retain for own, retain in pairs]
        return {name: share_below(values, TIE) for name, values in familiarity.items()}

    def _min_k(self, values: Tensor) -> float:
        return float(values.sort().values[: max(1, int(self.share * len(values)))].mean())


def statements(context: AttackContext, i: int) -> list[Query]:
    """The statement of a fact, then one about each of its unknown subjects, with an answer drawn from its relation's.

    The draw depends only on the seed and the fact, so that all models are asked the same.
    """
    fact, rng = context.facts[i], random.Random(f"{context.seed} {context.facts[i].id}")
    answers = (fact.target, *context.answers[i])
    unknown = [replace(fact.about(name).query, target=rng.choice(answers)) for name in context.unknown_subjects[i]]
    return [fact.query, *unknown]


def reference(gold: EditableLM, context: AttackContext) -> tuple[tuple[float, ...], ...]:
    """For each fact, the retain model's mean log-probability of each of its statements, 1 + unknown subjects."""
    facts = range(len(context.facts))
    by_fact = score_answers_by_fact(gold, lambda i: statements(context, i), facts, context.batch_tokens)
    return tuple(tuple(answer.mean_log_probability for answer in answers) for answers in by_fact)


def privleak(auc: float, gold: float) -> float:
    """Relative difference of membership to that of a retain model, in percent (MUSE, arXiv 2407.06460).

    Args:
        auc: AUC of telling the forgotten facts from made-up ones, 1 if they are always more familiar.
        gold: The same for a model that was never trained on them.

    Returns:
        ((1 - auc) - (1 - gold)) / (1 - gold) x 100: zero for a model like the retain model, down to -100 for one that
        reveals all facts, positive for one that avoids them conspicuously. ``UNDEFINED`` if gold is 1: then the facts
        differ from made-up ones for other reasons than training.
    """
    return ((1 - auc) - (1 - gold)) / (1 - gold) * 100 if gold < 1 else UNDEFINED
