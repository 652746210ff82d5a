"""Perplexity of held-out text."""

import torch
from torch import Tensor
from torchmetrics import Metric

from zu_lightning.evaluation.functional import negative_log_likelihood


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

    def update(self, logits: Tensor, tokens: Tensor) -> None:
        """Add tokens: ``logits`` (tokens x vocabulary) at the place before each of ``tokens`` (ids)."""
        self.nll += negative_log_likelihood(logits, tokens)
        self.total += tokens.numel()

    def compute(self) -> dict[str, Tensor]:
        """``{"perplexity": ...}`` over all tokens seen, or nothing if there were none."""
        return {"perplexity": (self.nll / self.total).exp()} if self.total else {}
