"""TOFU's truth ratio, and the test whether an edited model's are those of a retain model."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import ks_2samp
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

    Args:
        edited: Truth ratios of the edited model, n, or any monotone function of them; NaN are left out.
        gold: Those of the retain model, m.

    Returns:
        Between 0 and 1, or NaN without values.
    """
    edited, gold = (values[~values.isnan()].double() for values in (edited, gold))
    if not (len(edited) and len(gold)):
        return UNDEFINED
    return float(ks_2samp(edited.numpy(), gold.numpy()).pvalue)


def _wrong_answers(context: AttackContext, i: int) -> list[str]:
    answers = context.answers[i]
    return random.Random(f"{context.seed}-{context.facts[i].id}").sample(answers, min(WRONG, len(answers)))
