"""Metrics of an evaluation: sums over answers or tokens, so that processes and batches do not matter."""

import torch
from torch import Tensor
from torchmetrics import Metric

from zu_lightning.evaluation.functional import AnswerScores


class AnswerMetric(Metric):
    """Share of answers that greedy decoding gives in full, their mean probability, and their teacher-forced accuracy.

    States are sums over answers, so that any number of processes and any batching give the same scores.

    Args:
        name: A score of :data:`zu_lightning.evaluation.score_table.SCORES` in percent, such as ``efficacy``.
    """

    is_differentiable = False
    full_state_update = False

    exact: Tensor
    token_accuracy: Tensor
    probability: Tensor
    total: Tensor

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        for state in ("exact", "token_accuracy", "probability", "total"):
            self.add_state(state, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: AnswerScores) -> None:
        """Add a batch of answers."""
        self.exact += scores.exact.sum()
        self.token_accuracy += scores.token_accuracy.sum()
        self.probability += scores.probability.sum()
        self.total += len(scores.exact)

    def compute(self) -> dict[str, Tensor]:
        """Percent of exact matches and of correct tokens, and mean probability; empty if there were no answers."""
        if not self.total:
            return {}
        return {
            self.name: 100 * self.exact / self.total,
            f"{self.name}_token_accuracy": 100 * self.token_accuracy / self.total,
            f"{self.name}_probability": self.probability / self.total,
        }


class Perplexity(Metric):
    """exp of the mean negative log-likelihood per token, where the first token of a text does not count.

    Unlike ``torchmetrics.text.Perplexity``, it takes logits only at the places that count, and stays finite where a
    probability underflows, as may happen to a model that was made to forget.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    nll: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        for state in ("nll", "total"):
            self.add_state(state, torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, nll: Tensor) -> None:
        """Add tokens by their negative log-likelihoods."""
        self.nll += nll.sum()
        self.total += nll.numel()

    def compute(self) -> dict[str, Tensor]:
        """``{"perplexity": ...}`` over all tokens seen, or nothing if there were none."""
        return {"perplexity": (self.nll / self.total).exp()} if self.total else {}
