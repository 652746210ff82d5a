"""TOFU's truth ratio, and the test whether an edited model's are those of one that never knew."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.attacks.answers import reading, score_answers_by_fact
from zu_lightning.attacks.attack import NOTHING, Attack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM

WRONG = 20
"""Maximum number of wrong answers."""


@dataclass(frozen=True, kw_only=True)
class TruthRatio(Attack):
    """``1 / (1 + r)``, with r how likely wrong answers are compared to the true one (TOFU, arXiv 2401.06121).

    It is near 1 if the model prefers the truth, and 0.5 if wrong answers are as likely, see :func:`truth_ratios`. Where
    the truth ranks among them says :class:`~zu_lightning.attacks.rank.Rank`.
    """

    name = "truth_ratio"

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`TruthRatio`."""
        return ["truth_ratio"]

    def tokens(self, exam: AttackContext) -> int:
        """The true answer and the wrong ones after every paraphrase."""
        return reading(lambda i: _queries(exam, i), range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact one; none without wrong answers."""
        return {"truth_ratio": (1 / (1 + truth_ratios(lm, exam, facts))).tolist()}


def truth_ratios(lm: EditableLM, exam: AttackContext, facts: Sequence[int] | None = None) -> Tensor:
    """Mean probability of wrong answers over that of the true one (arXiv 2401.06121, Eq. 1); NaN without wrong ones.

    Probabilities are per token (the geometric mean). TOFU rewords the answers; here, where answers are names, the
    prompt is: right and wrong ones are asked for after each paraphrase, or the prompt if there is none, and each has
    its mean. As in the paper the mean is that of probabilities; published implementations (TOFU's and
    open-unlearning's) take it of log-probabilities, and so have other values.

    Args:
        lm: The model.
        exam: Its ``answers`` are the wrong ones; of more than :data:`WRONG` some are drawn.
        facts: Indices of facts; all by default.

    Returns:
        One ratio for each fact, float64; 0 if only the truth is likely, and near 1 if nothing is known.
    """
    facts = range(len(exam.facts)) if facts is None else facts
    ratios = []
    for i, answers in zip(
        facts, score_answers_by_fact(lm, lambda i: _queries(exam, i), facts, exam.batch_tokens), strict=True
    ):
        likely = torch.stack([answer.log_probability.mean() for answer in answers]).exp()
        likely = likely.view(-1, 1 + len(_wrong(exam, i)))
        ratios.append(float(likely[:, 1:].mean() / likely[:, 0].mean()))  # the mean of none is NaN
    return torch.tensor(ratios, dtype=torch.float64)


def forget_quality(edited: Tensor, gold: Tensor) -> float:
    """TOFU's forget quality: the p value of the two-sample Kolmogorov-Smirnov test (arXiv 2401.06121).

    A small one says that the edited model's truth ratios are not those of a model that never knew. It needs about 100
    facts; ten are too few to tell anything but the crudest difference, and a large value then means little.

    The p value is exact: of all orders of the pooled values, which are equally probable if both models are alike, it
    is the share whose distance between the two distribution functions is at least that which was found. It is too
    large, never too small, if values are equal.

    Args:
        edited: Truth ratios of the edited model, n, or anything that grows or falls with them; NaN are left out.
        gold: Those of the model that never knew, m.

    Returns:
        Between 0 and 1, or NaN without values.
    """
    edited, gold = (values[~values.isnan()].sort().values for values in (edited.double(), gold.double()))
    n, m = len(edited), len(gold)
    if not (n and m):
        return NOTHING
    pooled = torch.cat([edited, gold])
    below, below_gold = (torch.searchsorted(values, pooled, right=True) for values in (edited, gold))
    distance = int((below * m - below_gold * n).abs().max())  # times n m: whole numbers, so that equal ones are equal
    # Of the orders of i values of the one and j of the other, the share that reaches the distance on the way: the
    # last value is of the one in i of i + j orders.
    share = [[0.0] * (m + 1) for _ in range(n + 1)]
    for i in range(n + 1):
        for j in range(m + 1):
            if abs(i * m - j * n) >= distance:
                share[i][j] = 1.0
            else:
                share[i][j] = (i * share[i - 1][j] + j * share[i][j - 1]) / max(i + j, 1)
    return share[n][m]


def _wrong(exam: AttackContext, i: int) -> list[str]:
    answers = exam.answers[i]
    return random.Random(f"{exam.seed}-{exam.facts[i].id}").sample(answers, min(WRONG, len(answers)))


def _queries(exam: AttackContext, i: int) -> list[Query]:
    """To each paraphrase of a fact its answer, then wrong ones."""
    fact = exam.facts[i]
    return [
        replace(query, target=answer)
        for query in fact.paraphrased or (fact.query,)
        for answer in (fact.target, *_wrong(exam, i))
    ]
