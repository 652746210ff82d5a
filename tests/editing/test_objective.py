"""The objective of a layer, and gradient descent on it, against the exact optimum."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import in_processes, own_columns
from zu_lightning import LayerProblem, LowRankUpdate
from zu_lightning.editing.objective import Delta, DenseDelta, LayerObjective, TermWeights, WhitenedDelta, new_delta
from zu_lightning.runtime.distributed import all_reduce
from zu_lightning.solvers import null_space

D_OUT, D_IN, RETAIN = 6, 9, 4
WEIGHTS = TermWeights(zero=2.0, forget=30.0, ridge=0.1)


def objective_with(n: int) -> tuple[LayerObjective, Tensor]:
    """The objective for ``n`` random facts, and a basis of the null space."""
    generator = torch.Generator().manual_seed(n)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, retain = random(D_OUT, D_IN), random(D_IN, RETAIN)
    problem = LayerProblem(0, random(D_IN, n), random(D_OUT, n), random(D_OUT, n), retain @ retain.T)
    return LayerObjective(weight, problem, WEIGHTS), null_space(problem.second_moment, 1e-9)


def totals_of_descent(
    objective: LayerObjective, basis: Tensor, delta: Delta, steps: int, learning_rate: float | None = None
) -> list[float]:
    """The objective before and after each step of the optimizer that suits the coordinates."""
    delta.begin(objective.keys, basis, WEIGHTS)
    optimizer = delta.optimizer(learning_rate, WEIGHTS)
    totals = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = objective.terms(delta()).total
        torch.autograd.backward(loss)
        optimizer.step()
        totals.append(loss.item())
    return [*totals, objective.terms(delta()).total.item()]


@pytest.mark.parametrize("n", [3, 12])
def test_gradient_descent_reaches_the_exact_optimum_in_ten_steps(n: int) -> None:
    objective, basis = objective_with(n)
    exact = objective.terms(objective.exact(basis)).total.item()
    totals = totals_of_descent(objective, basis, WhitenedDelta(D_OUT, n), 10)
    assert totals[0] > 1.01 * exact
    assert abs(totals[-1] - exact) / exact < 1e-9
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(totals))  # no step overshoots


def test_adam_on_a_dense_delta_arrives_there_much_later() -> None:
    objective, basis = objective_with(3)
    exact = objective.terms(objective.exact(basis)).total.item()
    totals = totals_of_descent(objective, basis, DenseDelta(D_OUT, D_IN), 400, learning_rate=0.05)
    assert totals[10] > 1.01 * exact
    assert totals[-1] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("n", [3, 12])
def test_the_exact_optimum_has_no_gradient_within_the_projector(n: int) -> None:
    objective, basis = objective_with(n)
    update = objective.exact(basis)
    assert torch.allclose(update.dense() @ basis @ basis.T, update.dense())

    def gradient(coordinates: Tensor) -> Tensor:
        coordinates = coordinates.detach().requires_grad_()
        total = objective.terms(LowRankUpdate(coordinates, basis.T)).total
        return torch.autograd.grad(total, coordinates)[0]

    at_optimum = update.dense() @ basis
    assert gradient(at_optimum).norm() < 1e-10 * gradient(torch.zeros_like(at_optimum)).norm()


def test_both_factors_get_the_gradient_of_their_product() -> None:
    objective, basis = objective_with(3)
    left, right = (factor.clone().requires_grad_() for factor in vars(objective.exact(basis)).values())
    dense = (0.5 * left @ right).detach().requires_grad_()
    eye = torch.eye(D_IN, dtype=torch.float64)
    (wanted,) = torch.autograd.grad(objective.terms(LowRankUpdate(dense, eye)).total, dense)
    torch.autograd.backward(objective.terms(LowRankUpdate(0.5 * left, right)).total)
    assert torch.allclose(left.grad, 0.5 * wanted @ right.T)
    assert torch.allclose(right.grad, 0.5 * left.T @ wanted)
    assert wanted.norm() > 1


def test_terms_are_those_of_the_dense_update() -> None:
    objective, basis = objective_with(3)
    update = objective.exact(basis)
    X, K, W, U = update.dense(), objective.keys, objective.weight, objective.basis
    terms = objective.terms(update)
    assert torch.allclose(terms.zero, 2.0 * (U.T @ (W + X) @ K).square().sum())
    assert torch.allclose(terms.forget, 30.0 * (X @ K - objective.residuals).square().sum())
    assert torch.allclose(terms.ridge, 0.1 * X.square().sum())
    assert torch.allclose(terms.total, terms.zero + terms.forget + terms.ridge)


@pytest.mark.parametrize(("parametrization", "kind"), [("whitened", WhitenedDelta), ("dense", DenseDelta)])
def test_every_layer_starts_at_zero_with_its_own_projector(parametrization: str, kind: type[Delta]) -> None:
    n = 12  # more facts than the null space has directions
    delta = new_delta(parametrization, torch.zeros(D_OUT, D_IN), n)  # type: ignore[arg-type]
    assert type(delta) is kind
    shapes = []
    for facts in (n, 3):
        objective, basis = objective_with(facts)
        delta.begin(objective.keys, basis, WEIGHTS)
        assert not delta().dense().any()
        shapes.append(delta.coordinates.shape)
        with torch.no_grad():
            delta.coordinates.add_(1.0)
        update = delta().dense()
        assert update.shape == (D_OUT, D_IN)
        assert torch.allclose(update @ basis @ basis.T, update)
        assert update.norm() > 1e-3
    assert shapes[0] == shapes[1]


def test_an_own_learning_rate_is_taken() -> None:
    for delta, default in ((WhitenedDelta(D_OUT, 3), 30 / (2 * 32)), (DenseDelta(D_OUT, D_IN), 1e-3)):
        assert delta.optimizer(None, WEIGHTS).param_groups[0]["lr"] == pytest.approx(default)
        assert delta.optimizer(0.25, WEIGHTS).param_groups[0]["lr"] == 0.25


@pytest.mark.parametrize("n", [1, 12])
def test_processes_that_share_facts_descend_on_the_objective_of_all(n: int, tmp_path: Path) -> None:
    objective, basis = objective_with(n)

    def descended() -> tuple[list[Tensor], Tensor]:
        """Terms, exact optimum, and gradient of a process in DDP; all, if there is one."""
        own = LayerObjective(objective.weight, own_columns(objective.problem), WEIGHTS)
        delta = new_delta("whitened", own.weight, n)
        delta.begin(own.whole.keys, basis, WEIGHTS)
        with torch.no_grad():
            delta.coordinates.fill_(0.1)
        torch.autograd.backward(own.terms(delta()).loss)
        assert delta.coordinates.grad is not None
        gradient = all_reduce(delta.coordinates.grad @ delta().right)[0] / count
        terms = own.terms(delta()).summed()
        return [terms.zero, terms.forget, terms.ridge, own.terms(own.exact(basis)).summed().total], gradient

    count = 1
    (expected,) = in_processes(1, descended, tmp_path)
    count = 3
    for found in in_processes(3, descended, tmp_path):
        assert torch.allclose(torch.stack(found[0]), torch.stack(expected[0]), rtol=1e-10)
        assert torch.allclose(found[1], expected[1], rtol=1e-8)


def test_a_whitened_update_has_no_more_coordinates_than_a_rank() -> None:
    assert new_delta("whitened", torch.zeros(D_OUT, D_IN), 1000).coordinates.shape == (D_OUT, D_IN)
    assert new_delta("whitened", torch.zeros(D_OUT, D_IN), 4).coordinates.shape == (D_OUT, 4)
