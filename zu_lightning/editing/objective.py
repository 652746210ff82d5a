"""The ZeroUnlearn-GD objective of one layer, in thin factors: what gradient descent minimizes and what is logged."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.runtime.distributed import all_reduce, process
from zu_lightning.solvers import LowRankUpdate, zero_unlearn_gd

Parametrization = Literal["whitened", "dense"]
"""What gradient descent trains: whitened coordinates, or the matrix Delta."""


@dataclass(frozen=True)
class Terms:
    """The three terms of the objective (arXiv 2605.18879, Eq. 10), each with its weight, or a process's part of them.

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

    @property
    def loss(self) -> Tensor:
        """The loss of one process: DDP's mean of gradients over processes is the gradient of the whole objective."""
        return process()[1] * self.total

    def summed(self) -> "Terms":
        """The terms of all processes together; without a gradient."""
        return Terms(*all_reduce(torch.stack([self.zero, self.forget, self.ridge]).detach())[0])


@dataclass(frozen=True)
class TermWeights:
    """Weights of the objective's terms, see :class:`Terms`."""

    zero: float = 1.0
    forget: float = 100.0
    ridge: float = 0.1


class LayerObjective:
    """The ZeroUnlearn-GD objective of one layer: a sum over facts, as a function of a low-rank update.

    Each process has its share of the facts, and its part of the sum.

    Args:
        weight: W, d_out x d_in.
        problem: Keys, residuals, and values of n facts.
        weights: Weights of the three terms.
    """

    def __init__(self, weight: Tensor, problem: LayerProblem, weights: TermWeights) -> None:
        self.weight, self.weights, self.problem = weight, weights, problem
        self.keys, self.residuals = problem.keys.double(), problem.residuals.double()
        self.basis = problem.value_basis()
        self.along = self.basis.mT @ (weight.double() @ self.keys)

    @cached_property
    def whole(self) -> LayerProblem:
        """The problem of all processes' facts; all of them have to ask for it."""
        return self.problem.whole()

    def terms(self, update: LowRankUpdate) -> Terms:
        """This process's part of the three terms at an update; differentiable in its factors."""
        change = update.left @ (update.right @ self.keys)
        gram = (update.left.mT @ update.left) * (update.right @ update.right.mT)
        return Terms(
            zero=self.weights.zero * (self.along + self.basis.mT @ change).square().sum(),
            forget=self.weights.forget * (change - self.residuals).square().sum(),
            ridge=self.weights.ridge * gram.sum() / process()[1],
        )

    def exact(self, null_space: Tensor) -> LowRankUpdate:
        """The minimizer over ``X = Delta Q Q^T``, see :func:`zu_lightning.solvers.zero_unlearn_gd`."""
        return zero_unlearn_gd(
            self.weight, self.whole.keys, self.whole.residuals, self.whole.values, null_space,
            zero_weight=self.weights.zero, forget_weight=self.weights.forget, ridge=self.weights.ridge,
        )  # fmt: skip


class Delta(torch.nn.Module, ABC):
    """What gradient descent trains: the update ``X = Delta Q Q^T``, in some parametrization.

    Its parameter keeps its shape from layer to layer, because DDP needs that.
    """

    coordinates: torch.nn.Parameter

    @abstractmethod
    def begin(self, keys: Tensor, null_space: Tensor, weights: TermWeights) -> None:
        """Start at zero, with the projector of another layer.

        Args:
            keys: d_in x n, of all facts, or columns with the same sum of k k^T.
            null_space: Q, d_in x q.
            weights: Weights of the objective's terms.
        """

    @abstractmethod
    def forward(self) -> LowRankUpdate:
        """The present update X."""

    @abstractmethod
    def optimizer(self, learning_rate: float | None, weights: TermWeights) -> Optimizer:
        """The optimizer that suits these coordinates, with its own learning rate if none is given."""


class WhitenedDelta(Delta):
    """Coordinates in which gradient descent converges in a few steps.

    Any minimizer of the objective over ``X = Delta Q Q^T`` has its rows in the span of ``Q Q^T K = Ug S Vg^T``. With
    ``X = Y diag(1 / sqrt(forget_weight S^2 + ridge)) Ug^T`` the Hessian in Y has its eigenvalues in
    ``[2, 2 (zero_weight + forget_weight) / forget_weight]``.

    Args:
        d_out: Rows of the weight.
        rank: Largest rank that an update can have; coordinates beyond the rank of ``Q Q^T K`` have no effect.
    """

    right: Tensor

    def __init__(self, d_out: int, rank: int) -> None:
        super().__init__()
        self.coordinates = torch.nn.Parameter(torch.zeros(d_out, rank, dtype=torch.float64))

    def begin(self, keys: Tensor, null_space: Tensor, weights: TermWeights) -> None:
        """See :meth:`Delta.begin`."""
        left, s, _ = torch.linalg.svd(null_space.mT @ keys.double(), full_matrices=False)
        rows = (null_space @ (left / (weights.forget * s.square() + weights.ridge).sqrt())).mT
        missing = self.coordinates.shape[1] - len(rows)
        self.right = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
        with torch.no_grad():
            self.coordinates.zero_()

    def forward(self) -> LowRankUpdate:
        """The present update X."""
        return LowRankUpdate(self.coordinates, self.right)

    def optimizer(self, learning_rate: float | None, weights: TermWeights) -> Optimizer:
        """Plain gradient descent, by default with the longest step that cannot overshoot."""
        return SGD(self.parameters(), lr=learning_rate or step_size(weights))


class DenseDelta(Delta):
    """Delta itself, d_out x d_in, as the authors' release trains it."""

    null_space: Tensor

    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.coordinates = torch.nn.Parameter(torch.zeros(d_out, d_in, dtype=torch.float64))

    def begin(self, keys: Tensor, null_space: Tensor, weights: TermWeights) -> None:
        """See :meth:`Delta.begin`."""
        self.null_space = null_space
        with torch.no_grad():
            self.coordinates.zero_()

    def forward(self) -> LowRankUpdate:
        """The present update X."""
        return LowRankUpdate(self.coordinates @ self.null_space, self.null_space.mT)

    def optimizer(self, learning_rate: float | None, weights: TermWeights) -> Optimizer:
        """Adam, as in the authors' release."""
        return Adam(self.parameters(), lr=learning_rate or 1e-3)


def new_delta(parametrization: Parametrization, weight: Tensor, facts: int) -> Delta:
    """A Delta for ``weight`` (d_out x d_in) and ``facts`` facts, in the coordinates of a parametrization."""
    d_out, d_in = weight.shape
    return DenseDelta(d_out, d_in) if parametrization == "dense" else WhitenedDelta(d_out, min(facts, d_in))


def step_size(weights: TermWeights) -> float:
    """Step of gradient descent on :class:`WhitenedDelta` that cannot overshoot: 1 over the Hessian's upper bound."""
    return weights.forget / (2 * (weights.zero + weights.forget))
