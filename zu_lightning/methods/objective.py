"""The ZeroUnlearn-GD objective of one layer, in thin factors: what gradient descent minimises and what is reported."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from zu_lightning.solvers import LowRankUpdate, orthonormal_basis, zero_unlearn_gd


@dataclass(frozen=True)
class Terms:
    """The three terms of the objective (arXiv 2605.18879, Eq. 10), each with its weight.

    Attributes:
        zero: ``zero_weight ||U^T (W + X) K||^2``: what is left of the original values.
        forget: ``forget_weight ||(W + X) K - V*||^2``: distance to the neutral targets.
        ridge: ``ridge ||X||^2``: size of the update.
    """

    zero: Tensor
    forget: Tensor
    ridge: Tensor

    @property
    def total(self) -> Tensor:
        """The objective."""
        return self.zero + self.forget + self.ridge


class Objective:
    """Sum over facts of the ZeroUnlearn-GD terms, as a function of a low-rank update.

    Args:
        weight: W, d_out x d_in.
        keys: K, d_in x n.
        residuals: R, d_out x n.
        values: V, d_out x n.
        zero_weight: Weight of the zero term.
        forget_weight: Weight of the forget term.
        ridge: Weight of the size of the update.
    """

    def __init__(
        self,
        weight: Tensor,
        keys: Tensor,
        residuals: Tensor,
        values: Tensor,
        *,
        zero_weight: float = 1.0,
        forget_weight: float = 100.0,
        ridge: float = 0.1,
    ) -> None:
        self.weight, self.keys, self.residuals, self.values = weight, keys.double(), residuals.double(), values
        self.basis = orthonormal_basis(values.double())
        self.along = self.basis.mT @ (weight.double() @ self.keys)
        self.zero_weight, self.forget_weight, self.ridge = zero_weight, forget_weight, ridge

    def terms(self, update: LowRankUpdate) -> Terms:
        """The three terms at an update; differentiable in its factors."""
        change = update.left @ (update.right @ self.keys)
        gram = (update.left.mT @ update.left) * (update.right @ update.right.mT)
        return Terms(
            zero=self.zero_weight * (self.along + self.basis.mT @ change).square().sum(),
            forget=self.forget_weight * (change - self.residuals).square().sum(),
            ridge=self.ridge * gram.sum(),
        )

    def exact(self, null_space: Tensor) -> LowRankUpdate:
        """The minimiser behind the projector ``Q Q^T``, see :func:`zu_lightning.solvers.zero_unlearn_gd`."""
        return zero_unlearn_gd(
            self.weight, self.keys, self.residuals, self.values, null_space,
            zero_weight=self.zero_weight, forget_weight=self.forget_weight, ridge=self.ridge,
        )  # fmt: skip


class Delta(torch.nn.Module, ABC):
    """What gradient descent trains: the update ``X = Delta Q Q^T``, in some coordinates.

    Its parameter keeps its shape from layer to layer, as DDP needs it.
    """

    coordinates: torch.nn.Parameter

    @abstractmethod
    def begin(self, keys: Tensor, null_space: Tensor, *, forget_weight: float, ridge: float) -> None:
        """Start at zero behind the projector of another layer: ``keys`` d_in x n, ``null_space`` d_in x q."""

    @abstractmethod
    def forward(self) -> LowRankUpdate:
        """The present update X."""


class WhitenedDelta(Delta):
    """Coordinates in which gradient descent converges in a few steps.

    Any minimiser of the objective over ``X = Delta Q Q^T`` has its rows in the span of ``Q Q^T K = Ug S Vg^T``. With
    ``X = Y diag(1 / sqrt(forget_weight S^2 + ridge)) Ug^T`` the Hessian in Y has its eigenvalues in
    ``[2, 2 (zero_weight + forget_weight) / forget_weight]``.

    Args:
        d_out: Rows of the weight.
        facts: n, the largest rank; coordinates beyond the rank of ``Q Q^T K`` stay without effect.
    """

    right: Tensor

    def __init__(self, d_out: int, facts: int) -> None:
        super().__init__()
        self.coordinates = torch.nn.Parameter(torch.zeros(d_out, facts, dtype=torch.float64))

    def begin(self, keys: Tensor, null_space: Tensor, *, forget_weight: float, ridge: float) -> None:
        """See :meth:`Delta.begin`."""
        left, s, _ = torch.linalg.svd(null_space.mT @ keys.double(), full_matrices=False)
        rows = (null_space @ (left / (forget_weight * s.square() + ridge).sqrt())).mT
        missing = self.coordinates.shape[1] - len(rows)
        self.right = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        with torch.no_grad():
            self.coordinates.zero_()

    def forward(self) -> LowRankUpdate:
        """The present update X."""
        return LowRankUpdate(self.coordinates, self.right)


class DenseDelta(Delta):
    """Delta itself, d_out x d_in, as the paper trains it."""

    null_space: Tensor

    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.coordinates = torch.nn.Parameter(torch.zeros(d_out, d_in, dtype=torch.float64))

    def begin(self, keys: Tensor, null_space: Tensor, *, forget_weight: float, ridge: float) -> None:
        """See :meth:`Delta.begin`."""
        self.null_space = null_space
        with torch.no_grad():
            self.coordinates.zero_()

    def forward(self) -> LowRankUpdate:
        """The present update X."""
        return LowRankUpdate(self.coordinates @ self.null_space, self.null_space.mT)


def step_size(zero_weight: float, forget_weight: float) -> float:
    """Step of gradient descent on :class:`WhitenedDelta` that cannot overshoot: 1 over the Hessian's upper bound."""
    return forget_weight / (2 * (zero_weight + forget_weight))
