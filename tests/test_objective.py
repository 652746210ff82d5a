"""Gradient descent in whitened coordinates against the exact optimum."""

import torch
from torch import Tensor

from zu_lightning.methods.objective import Objective, WhitenedDelta, step_size
from zu_lightning.solvers import null_space


def problem(n: int) -> tuple[Objective, Tensor]:
    generator = torch.Generator().manual_seed(n)
    weight, keys, residuals, values = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6, 9), (9, n), (6, n), (6, n))
    )
    retain = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    objective = Objective(weight, keys, residuals, values, zero_weight=2.0, forget_weight=30.0, ridge=0.1)
    return objective, null_space(retain @ retain.T, 1e-9)


def descend(objective: Objective, basis: Tensor, steps: int) -> WhitenedDelta:
    delta = WhitenedDelta(6, objective.keys.shape[1])
    delta.begin(objective.keys, basis, forget_weight=30.0, ridge=0.1)
    optimizer = torch.optim.SGD(delta.parameters(), lr=step_size(2.0, 30.0))
    for _ in range(steps):
        optimizer.zero_grad()
        objective.terms(delta()).total.backward()
        optimizer.step()
    return delta


def test_gradient_descent_reaches_the_exact_optimum_in_ten_steps() -> None:
    for n in (3, 12):
        objective, basis = problem(n)
        exact = objective.terms(objective.exact(basis)).total
        start = objective.terms(descend(objective, basis, 0)()).total
        reached = objective.terms(descend(objective, basis, 10)()).total
        assert start > 1.01 * exact
        assert abs(reached - exact) / exact < 1e-9


def test_the_exact_optimum_has_no_gradient() -> None:
    objective, basis = problem(3)
    update = objective.exact(basis)
    left = update.left.clone().requires_grad_()
    loss = objective.terms(type(update)(left, update.right)).total
    loss.backward()
    assert left.grad is not None
    assert left.grad.abs().max() < 1e-9 * loss.item()


def test_terms_are_those_of_the_dense_update() -> None:
    objective, basis = problem(3)
    update = objective.exact(basis)
    X, K, W = update.dense(), objective.keys, objective.weight
    terms = objective.terms(update)
    U = objective.basis
    assert torch.allclose(terms.zero, 2.0 * (U.T @ (W + X) @ K).square().sum())
    assert torch.allclose(terms.forget, 30.0 * (X @ K - objective.residuals).square().sum())
    assert torch.allclose(terms.ridge, 0.1 * X.square().sum())
