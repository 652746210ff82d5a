"""Whether the model still gives an answer: Efficacy, Generalization, Specificity, MultiHop, Retain, and others."""

from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from zu_lightning.evaluation.functional import answer_scores


class AnswerMetric(Metric):
    """Share of answers that greedy decoding gives in full, their mean probability, and their teacher-forced accuracy.

    States are sums over answers, so that any number of processes and any batching give the same scores.

    ``compute`` returns ``{name: percent, name_token_accuracy: percent, name_probability: 0..1}``, or nothing if no
    answer was seen.
    """

    is_differentiable = False
    full_state_update = False
    name: ClassVar[str]

    exact: Tensor
    token_accuracy: Tensor
    probability: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("exact", "token_accuracy", "probability", "total"):
            self.add_state(state, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, tokens: Tensor, answer: Tensor, count: int) -> None:
        """Add a batch of answers: the arguments of :func:`zu_lightning.evaluation.functional.answer_scores`."""
        scores = answer_scores(logits, tokens, answer, count)
        self.exact += scores.exact.sum()
        self.token_accuracy += scores.token_accuracy.sum()
        self.probability += scores.probability.sum()
        self.total += count

    def compute(self) -> dict[str, Tensor]:
        """Percent of exact matches and of correct tokens, and mean probability, over all answers seen."""
        if not self.total:
            return {}
        return {
            self.name: 100 * self.exact / self.total,
            f"{self.name}_token_accuracy": 100 * self.token_accuracy / self.total,
            f"{self.name}_probability": self.probability / self.total,
        }


class Efficacy(AnswerMetric):
    """Forgotten facts that the model still answers, on their own prompts: low is good after unlearning."""

    higher_is_better = False
    name = "efficacy"


class Generalization(AnswerMetric):
    """Forgotten facts that the model still answers, on paraphrases: low is good after unlearning."""

    higher_is_better = False
    name = "generalization"


class Specificity(AnswerMetric):
    """Neighbors of forgotten facts (same relation and object, other subject) that the model still answers."""

    higher_is_better = True
    name = "specificity"


class MultiHop(AnswerMetric):
    """Questions about forgotten facts and others that the model still answers: low is good after unlearning."""

    higher_is_better = False
    name = "multi_hop"


class Retain(AnswerMetric):
    """Facts of the retain set that the model still answers."""

    higher_is_better = True
    name = "retain"


class SameSubject(AnswerMetric):
    """Other facts about the forgotten subjects, which should stay, that the model still answers."""

    higher_is_better = True
    name = "same_subject"


class Protected(AnswerMetric):
    """Facts about others of which the method was told that the model still answers."""

    higher_is_better = True
    name = "protected"
