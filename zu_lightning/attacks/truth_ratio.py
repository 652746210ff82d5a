"""TOFU's truth ratio, and the test whether an edited model's are those of a retain model."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.attacks.answers import AnswerLogprobs
from zu_lightning.attacks.attack import UNDEFINED, QueryAttack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query

WRONG = 20
"""Maximum number of wrong answers."""


@dataclass(frozen=True, kw_only=True)
class TruthRatio(QueryAttack):
    """``1 / (1 + r)``, with r the mean probability of wrong answers over that of the true one (TOFU, arXiv 2401.06121).

    It is near 1 if the model prefers the truth, and 0.5 if wrong answers are as likely. The rank of the truth among
    them is :class:`~zu_lightning.attacks.rank.Rank`.
    """

    name = "truth_ratio"

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """Each paraphrase (the prompt if there is none) with the true answer, then with wrong ones."""
        fact = context.facts[i]
        answers = (fact.target, *_wrong_answers(context, i))
        return [replace(query, target=answer) for query in fact.paraphrased or (fact.query,) for answer in answers]

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """One score; undefined without wrong answers."""
        likelihood = torch.stack([answer.log_probability.mean() for answer in answers]).exp()
        return {self.name: 1 / (1 + truth_ratio(likelihood.view(-1, 1 + len(_wrong_answers(context, i)))))}


def truth_ratio(likelihood: Tensor) -> float:
    """Mean probability of wrong answers over that of the true one (arXiv 2401.06121, Eq. 1).

    Probabilities are per token (the geometric mean). TOFU rewords the answers; here, where answers are names, the
    prompt is reworded. As in the paper the mean is that of probabilities; published implementations (TOFU's and
    open-unlearning's) average log-probabilities, and so have other values.

    Args:
        likelihood: Probability per token of the true answer and the wrong ones, paraphrases x (1 + wrong).

    Returns:
        0 if only the truth is likely, near 1 if nothing is known, NaN without wrong answers.
    """
    return float(likelihood[:, 1:].mean() / likelihood[:, 0].mean())


def forget_quality(edited: Tensor, gold: Tensor) -> float:
    """TOFU's forget quality: the p value of the two-sample Kolmogorov-Smirnov test (arXiv 2401.06121).

    A small one shows that the edited model's truth ratios are not those of a model that was never trained on the facts.
    The test needs about 100 facts; ten detect only the crudest difference, and a large value then means little.

    The p value is exact: of all orders of the pooled values, which are equally probable if both models are alike, it
    is the share whose distance between the two distribution functions is at least the observed one. It is too large,
    never too small, if values are equal.

    Args:
        edited: Truth ratios of the edited model, n, or any monotone function of them; NaN are left out.
        gold: Those of the retain model, m.

    Returns:
        Between 0 and 1, or NaN without values.
    """
    edited, gold = (values[~values.isnan()].sort().values for values in (edited.double(), gold.double()))
    n, m = len(edited), len(gold)
    if not (n and m):
        return UNDEFINED
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


def _wrong_answers(context: AttackContext, i: int) -> list[str]:
    answers = context.answers[i]
    return random.Random(f"{context.seed}-{context.facts[i].id}").sample(answers, min(WRONG, len(answers)))
