"""Perplexity of held-out text."""

import torch
from torch import Tensor
from torchmetrics import Metric


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
