"""Every closed form against its paper's formula, written out, and against a brute-force minimizer of its objective."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import hessian

from zu_lightning import solvers

D_OUT, D_IN = 5, 7


class Problem:
    """Random tensors of a layer: W, K, R, V, C and Q, float64."""

    def __init__(self, n: int, rank_of_values: int | None = None) -> None:
        generator = torch.Generator().manual_seed(n)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.W = random(D_OUT, D_IN)
        self.K = random(D_IN, n)
        self.R = random(D_OUT, n)
        rank = rank_of_values or n
        self.V = random(D_OUT, rank) @ random(rank, n) if rank_of_values else random(D_OUT, n)
        retain = random(D_IN, 3)
        self.C = retain @ retain.T / 3
        self.full_C = self.C + 0.1 * torch.eye(D_IN, dtype=torch.float64)
        self.Q = solvers.null_space(self.C, 1e-10)
        self.target = self.W @ self.K + self.R
        left, s, _ = torch.linalg.svd(self.V, full_matrices=False)
        self.U = left[:, s > 1e-8 * s.max()]
        self.P = torch.eye(D_OUT, dtype=torch.float64) - self.U @ self.U.T


@pytest.fixture(params=[(3, None), (11, None), (3, 1), (11, 2)], ids=["n<d", "n>d", "n<d,rank1", "n>d,rank2"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(*request.param)


def minimizer(objective: Callable[[Tensor], Tensor], shape: tuple[int, int]) -> Tensor:
    """Minimizer of a convex quadratic by its dense Hessian: slow, and knows nothing of its structure."""
    start = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(objective(start), start)
    curvature = hessian(objective, start).reshape(start.numel(), -1)  # type: ignore[no-untyped-call]
    lowest: Tensor = -torch.linalg.pinv(curvature, atol=1e-9, hermitian=True) @ gradient.reshape(-1)
    return lowest.reshape(shape)


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-8, atol=1e-8)


def test_zero_unlearn_is_the_papers_formula(problem: Problem) -> None:
    p, lr, lf, ridge = problem, 15.0, 50.0, 1.0
    eye = torch.eye(D_IN, dtype=torch.float64)
    D = (
        p.P
        @ ((lr * p.W @ p.C + lf * p.target @ p.K.T + ridge * p.W) @ p.W.T)
        @ torch.linalg.inv(p.W @ (lr * p.C + lf * p.K @ p.K.T + ridge * eye) @ p.W.T)
    )
    update = solvers.zero_unlearn(p.W, p.K, p.R, p.V, p.C, retain_weight=lr, forget_weight=lf, ridge=ridge)
    assert close(update.dense(), D @ p.W - p.W)
    assert update.rank <= 2 * p.K.shape[1]


def test_zero_unlearn_minimizes_its_objective(problem: Problem) -> None:
    p, lr, lf, ridge = problem, 0.7, 2.0, 0.3

    def objective(D: Tensor) -> Tensor:
        change = p.P @ D @ p.W - p.W
        total: Tensor = (
            lf * (p.P @ D @ p.W @ p.K - p.target).square().sum()
            + lr * torch.trace(change @ p.C @ change.T)
            + ridge * change.square().sum()
        )
        return total

    best = p.P @ minimizer(objective, (D_OUT, D_OUT)) @ p.W
    update = solvers.zero_unlearn(p.W, p.K, p.R, p.V, p.C, retain_weight=lr, forget_weight=lf, ridge=ridge)
    assert close(p.W + update.dense(), best)


def test_zero_unlearn_makes_every_output_orthogonal_to_the_values() -> None:
    p = Problem(3)
    edited = p.W + solvers.zero_unlearn(p.W, p.K, p.R, p.V, p.C).dense()
    keys = torch.randn(D_IN, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (p.U.T @ p.W @ keys).abs().max() > 1
    assert (p.U.T @ edited @ keys).abs().max() < 1e-8


def test_zero_unlearn_with_slack_is_the_releases_formula() -> None:
    p, slack = Problem(3), 0.01
    eye = torch.eye(D_IN, dtype=torch.float64)
    P = p.P + slack * torch.eye(D_OUT, dtype=torch.float64)
    M = 2 * p.C + 3 * p.K @ p.K.T + eye
    D = P @ ((2 * p.W @ p.C + 3 * p.target @ p.K.T + p.W) @ p.W.T) @ torch.linalg.inv(p.W @ M @ p.W.T)
    update = solvers.zero_unlearn(p.W, p.K, p.R, p.V, p.C, retain_weight=2, forget_weight=3, ridge=1, slack=slack)
    assert close(update.dense(), D @ p.W - p.W)


def test_zero_unlearn_gd_minimizes_its_objective(problem: Problem) -> None:
    p, a, b, c = problem, 1.5, 4.0, 0.1
    projector = p.Q @ p.Q.T

    def objective(delta: Tensor) -> Tensor:
        edited = p.W + delta @ projector
        total: Tensor = (
            a * (p.U.T @ edited @ p.K).square().sum()
            + b * (edited @ p.K - p.target).square().sum()
            + c * (delta @ projector).square().sum()
        )
        return total

    best = minimizer(objective, (D_OUT, D_IN)) @ projector
    update = solvers.zero_unlearn_gd(p.W, p.K, p.R, p.V, p.Q, zero_weight=a, forget_weight=b, ridge=c)
    assert close(update.dense(), best)
    assert update.rank <= p.K.shape[1]
    assert (update.dense() @ p.C).abs().max() < 1e-10


def test_zero_unlearn_gd_is_where_lbfgs_ends(problem: Problem) -> None:
    p, a, b, c = problem, 1.0, 100.0, 0.1
    projector = p.Q @ p.Q.T
    delta = torch.zeros(D_OUT, D_IN, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [delta], max_iter=2000, max_eval=4000, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        edited = p.W + delta @ projector
        total: Tensor = (
            a * (p.U.T @ edited @ p.K).square().sum()
            + b * (edited @ p.K - p.target).square().sum()
            + c * (delta @ projector).square().sum()
        )
        torch.autograd.backward(total)
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    update = solvers.zero_unlearn_gd(p.W, p.K, p.R, p.V, p.Q, zero_weight=a, forget_weight=b, ridge=c).dense()
    assert (delta.detach() @ projector - update).norm() / update.norm() < 1e-7


SOLVED: dict[str, Callable[[Problem, Tensor, Tensor, Tensor], solvers.LowRankUpdate]] = {
    "zero_unlearn": lambda p, K, R, V: solvers.zero_unlearn(p.W, K, R, V, p.full_C, retain_weight=0.7),
    "zero_unlearn, slack": lambda p, K, R, V: solvers.zero_unlearn(p.W, K, R, V, p.full_C, slack=0.01),
    "zero_unlearn_gd": lambda p, K, R, V: solvers.zero_unlearn_gd(
        p.W, K, R, V, p.Q, zero_weight=1.5, forget_weight=4.0
    ),
    "zero_unlearn_soft": lambda p, K, R, V: solvers.zero_unlearn_soft(p.W, K, R, V, p.C, zero_weight=1.5),
    "memit": lambda p, K, R, V: solvers.memit(p.W, K, R, p.full_C, retain_weight=0.01),
    "alphaedit": lambda p, K, R, V: solvers.alphaedit(p.W, K, R, p.Q, ridge=0.01),
}
"""Solvers of columns K, R, and V, with the weight and the retain keys of a problem."""


@pytest.mark.parametrize("solver", SOLVED)
def test_columns_with_the_same_sums_have_the_same_update(problem: Problem, solver: str) -> None:
    p, solved = problem, SOLVED[solver]
    expected = solved(p, p.K, p.R, p.V).dense()
    first = solvers.ForgetSums.of(p.K[:, :1], p.R[:, :1], p.V[:, :1])
    rest = solvers.ForgetSums.of(p.K[:, 1:], p.R[:, 1:], p.V[:, 1:])
    keys, residuals, values = (first + rest).columns()
    found = solved(p, keys, residuals, values).dense()
    assert (found - expected).norm() < 1e-9 * expected.norm()
    assert keys.shape[1] == residuals.shape[1] == min(p.K.shape[1], D_IN)
    assert values.shape[1] == torch.linalg.matrix_rank(p.V)


def test_a_basis_from_sums_spans_the_values(problem: Problem) -> None:
    U = solvers.basis_from_sums(problem.V @ problem.V.T)
    assert close(U @ U.T, problem.U @ problem.U.T)


def test_zero_unlearn_soft_minimizes_its_objective(problem: Problem) -> None:
    p, a, b, lr, ridge = problem, 1.5, 4.0, 0.7, 0.1

    def objective(X: Tensor) -> Tensor:
        total: Tensor = (
            a * (p.U.T @ (p.W + X) @ p.K).square().sum()
            + b * ((p.W + X) @ p.K - p.target).square().sum()
            + lr * torch.trace(X @ p.C @ X.T)
            + ridge * X.square().sum()
        )
        return total

    update = solvers.zero_unlearn_soft(
        p.W, p.K, p.R, p.V, p.C, zero_weight=a, forget_weight=b, retain_weight=lr, ridge=ridge
    )
    assert close(update.dense(), minimizer(objective, (D_OUT, D_IN)))


def test_memit_is_the_papers_formula(problem: Problem) -> None:
    p = problem
    literal = p.R @ p.K.T @ torch.linalg.inv(15.0 * p.full_C + p.K @ p.K.T)
    assert close(solvers.memit(p.W, p.K, p.R, p.full_C, retain_weight=15.0).dense(), literal)


def test_alphaedit_is_the_papers_formula(problem: Problem) -> None:
    p, projector = problem, problem.Q @ problem.Q.T
    eye = torch.eye(D_IN, dtype=torch.float64)
    literal = p.R @ p.K.T @ projector @ torch.linalg.inv(p.K @ p.K.T @ projector + 10.0 * eye)
    assert close(solvers.alphaedit(p.W, p.K, p.R, p.Q, ridge=10.0).dense(), literal)


def test_rome_meets_its_fact_and_moves_least_in_the_retain_metric() -> None:
    p = Problem(1)
    update = solvers.rome(p.W, p.K[:, 0], p.R[:, 0], p.full_C).dense()
    assert close(update @ p.K, p.R)
    direction = torch.linalg.inv(p.full_C) @ p.K
    assert close(update, p.R @ direction.T / (p.K.T @ direction))


def test_null_space_is_orthonormal_and_invisible_to_retain_keys() -> None:
    p = Problem(3)
    assert p.Q.shape == (D_IN, D_IN - 3)
    assert close(p.Q.T @ p.Q, torch.eye(D_IN - 3, dtype=torch.float64))
    assert (p.C @ p.Q).abs().max() < 1e-12


SPECTRUM = torch.tensor([0.0, 0.1, 0.2, 0.7, 4.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("criterion", "threshold", "kept"),
    [("absolute", 0.2, 3), ("relative", 0.1, 3), ("relative", 0.2, 4), ("energy", 0.025, 2), ("energy", 0.2, 4)],
)
def test_a_threshold_is_measured_as_its_criterion_says(
    criterion: solvers.NullSpaceCriterion, threshold: float, kept: int
) -> None:
    basis, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    C = basis @ torch.diag(SPECTRUM) @ basis.T
    Q = solvers.null_space(C, threshold + 1e-12, criterion)
    assert close(Q @ Q.T, basis[:, :kept] @ basis[:, :kept].T)


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(ValueError, match="one of absolute, relative, energy, but is 'rank'"):
        solvers.null_space(torch.eye(2), 0.1, "rank")  # type: ignore[arg-type]


@pytest.mark.parametrize("criterion", ["absolute", "relative", "energy"])
def test_an_empty_null_space_is_refused_with_its_spectrum(criterion: solvers.NullSpaceCriterion) -> None:
    with pytest.raises(
        ValueError, match=rf"{criterion} threshold 0\.01; .* range from 2 through a .* of 2 to 2, .* is 8: raise"
    ):
        solvers.null_space(2 * torch.eye(4), 0.01, criterion)


@pytest.mark.parametrize("name", ["keys", "residuals", "values", "second_moment"])
def test_nan_is_refused_by_name(name: str) -> None:
    p = Problem(3)
    tensors = {"weight": p.W, "keys": p.K, "residuals": p.R, "values": p.V, "second_moment": p.C}
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0] = float("nan")
    with pytest.raises(ValueError, match=f"`{name}` holds NaN"):
        solvers.zero_unlearn(**tensors)  # type: ignore[arg-type]


def test_transposed_keys_are_refused_with_both_shapes() -> None:
    p = Problem(3)
    with pytest.raises(ValueError, match=r"`keys` has shape \(3, 7\), where d_in should be 7 as in `weight`"):
        solvers.memit(p.W, p.K.T, p.R, p.C)


def test_a_singular_system_is_refused_with_a_remedy() -> None:
    p = Problem(1)
    with pytest.raises(ValueError, match=r"not positive definite .* more retain text, or a larger ridge"):
        solvers.rome(p.W, p.K, p.R, torch.zeros(D_IN, D_IN))
