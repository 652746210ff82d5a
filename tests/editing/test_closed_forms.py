"""Methods: units that carry over from model to model, refusals, and a method added from outside the package."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import TEXTS, in_processes, own_columns, random, random_problem
from zu_lightning import (
    AlphaEdit,
    EditableLM,
    EditingMethod,
    Erase,
    Fact,
    InputError,
    LatentOptions,
    LayerProblem,
    LowRankUpdate,
    Memit,
    Request,
    RetainText,
    Rome,
    ZeroUnlearn,
    ZeroUnlearnGD,
    ZeroUnlearnSoft,
    solvers,
    unlearn,
)
from zu_lightning.editing.closed_forms import RetainMethod

METHODS = [
    ZeroUnlearn(),
    ZeroUnlearnGD(threshold=0.5),
    ZeroUnlearnSoft(),
    Memit(),
    AlphaEdit(threshold=0.5),
    Rome(),
]


def name(method: EditingMethod) -> str:
    return type(method).__name__


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_scale_free_methods_do_the_same_in_a_model_of_another_scale(method: EditingMethod) -> None:
    weight, problem = random_problem()
    scaled_weight, scaled_problem = random_problem(scale=100.0)
    effect = method(weight, problem).dense() @ problem.keys
    scaled_effect = method(scaled_weight, scaled_problem).dense() @ scaled_problem.keys
    assert effect.norm() > 0.1
    assert torch.allclose(effect, scaled_effect, rtol=1e-6, atol=1e-9)


def test_the_releases_units_do_not_carry_over() -> None:
    method = ZeroUnlearn(scale_free=False, retain_weight=15000.0, forget_weight=50.0, ridge=1.0)
    (weight, problem), (scaled_weight, scaled_problem) = random_problem(), random_problem(scale=0.001)
    effect = method(weight, problem).dense() @ problem.keys
    scaled_effect = method(scaled_weight, scaled_problem).dense() @ scaled_problem.keys
    assert not torch.allclose(effect, scaled_effect, rtol=0.1)


SOLVER_WEIGHTS = ("retain_weight", "forget_weight", "zero_weight", "ridge")


def solved(method: EditingMethod, weight: Tensor, p: LayerProblem) -> LowRankUpdate:
    """What the solver of a method gives with the weights that are the method's."""
    w = {field: value for field, value in vars(method).items() if field in SOLVER_WEIGHTS}
    if isinstance(method, ZeroUnlearn):
        return solvers.zero_unlearn(weight, p.keys, p.residuals, p.values, p.second_moment, **w)
    if isinstance(method, ZeroUnlearnSoft):
        return solvers.zero_unlearn_soft(weight, p.keys, p.residuals, p.values, p.second_moment, **w)
    if isinstance(method, Memit):
        return solvers.memit(weight, p.keys, p.residuals, p.second_moment, **w)
    assert isinstance(method, ZeroUnlearnGD | AlphaEdit)
    basis = solvers.null_space(p.second_moment, method.threshold, method.criterion)
    if isinstance(method, AlphaEdit):
        return solvers.alphaedit(weight, p.keys, p.residuals, basis, **w)
    return solvers.zero_unlearn_gd(weight, p.keys, p.residuals, p.values, basis, **w)


@pytest.mark.parametrize("scale_free", [True, False])
@pytest.mark.parametrize("method", METHODS[:-1], ids=name)
def test_a_method_is_its_solver_with_every_weight_in_its_place(method: EditingMethod, scale_free: bool) -> None:
    weight, problem = random_problem()
    weights = {
        field: value
        for field, value in vars(method).items()
        if isinstance(value, float) and field not in ("threshold", "tolerance")
    }
    odd: dict[str, Any] = {field: 0.3 + i for i, field in enumerate(weights)}
    changed = replace(method, scale_free=scale_free, **odd)
    expected = solved(changed, weight, problem.scale_free() if scale_free else problem)
    assert torch.equal(changed(weight, problem).dense(), expected.dense())


@pytest.mark.parametrize("scale_free", [True, False])
@pytest.mark.parametrize("method", METHODS[:-1], ids=name)
def test_what_is_protected_is_changed_less(method: EditingMethod, scale_free: bool) -> None:
    weight, problem = random_problem()
    keys, values = random(9, 2, seed=9), solvers.orthonormal_basis(problem.values)

    def change(protect_weight: float) -> float:
        """At the protected keys, across the original values, along which ZeroUnlearn removes every output."""
        protecting = replace(method, scale_free=scale_free, protect_weight=protect_weight)
        changed = protecting(weight, replace(problem, protected_keys=keys)).dense() @ keys
        return float((changed - values @ (values.mT @ changed)).norm())

    assert change(10.0) < 0.5 * change(0.0)


def test_rome_meets_every_fact_in_turn() -> None:
    weight, problem = random_problem()
    update = Rome(scale_free=False)(weight, problem)
    assert update.rank == 3
    assert torch.allclose(update.dense() @ problem.keys[:, 2], problem.residuals[:, 2])


def test_rome_of_one_fact_is_its_solver() -> None:
    weight, problem = random_problem()
    one = replace(problem, keys=problem.keys[:, :1], residuals=problem.residuals[:, :1], values=problem.values[:, :1])
    expected = solvers.rome(weight, one.keys[:, 0], one.residuals[:, 0], one.second_moment)
    assert torch.allclose(Rome(scale_free=False)(weight, one).dense(), expected.dense())


NUMBERS = [
    (method, field)
    for method in METHODS
    for field, value in vars(method).items()
    if isinstance(value, float) and field not in method.positive
]


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
@pytest.mark.parametrize(("method", "field"), NUMBERS, ids=lambda part: part if isinstance(part, str) else name(part))
def test_a_weight_that_means_nothing_is_refused_by_name(method: EditingMethod, field: str, value: float) -> None:
    given: dict[str, Any] = {field: value}
    with pytest.raises(InputError, match=rf"{name(method)}\.{field} is {value}: give zero or a positive number"):
        replace(method, **given)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (ZeroUnlearnGD(threshold=0.0), "ZeroUnlearnGD.threshold is 0.0: layer 0 has no solution: the null space is"),
        (AlphaEdit(threshold=0.0), "AlphaEdit.threshold is 0.0: layer 0 has no solution: the null space is empty"),
    ],
)
def test_a_problem_without_solution_is_refused_by_method_and_layer(method: EditingMethod, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(*random_problem())


def test_a_null_space_can_be_asked_for_before_it_is_solved_in() -> None:
    _, problem = random_problem()
    method = ZeroUnlearnGD(threshold=0.5)
    expected = solvers.null_space(problem.scale_free().second_moment, 0.5, "absolute")
    assert torch.equal(method.null_space(method.in_units(problem)), expected)
    with pytest.raises(InputError, match=r"ZeroUnlearnGD\.threshold is 0\.0: layer 0 has no solution"):
        ZeroUnlearnGD(threshold=0.0).null_space(problem)


@pytest.mark.parametrize("scale_free", [True, False])
@pytest.mark.parametrize("criterion", ["absolute", "relative"])
def test_the_threshold_of_a_picture_lies_where_the_null_space_ends(
    scale_free: bool, criterion: solvers.NullSpaceCriterion
) -> None:
    _, problem = random_problem()
    method = AlphaEdit(threshold=0.5, criterion=criterion, scale_free=scale_free)
    eigenvalues = torch.linalg.eigvalsh(problem.second_moment)
    threshold = method.threshold_over_mean(eigenvalues)
    assert threshold is not None
    free = int((eigenvalues / eigenvalues.mean() <= threshold).sum())
    assert 0 < free == method.null_space(method.in_units(problem)).shape[1]
    assert AlphaEdit(criterion="energy").threshold_over_mean(eigenvalues) is None


@dataclass(frozen=True, kw_only=True)
class LeastSquares(EditingMethod):
    """A method that the package does not know: the smallest update that takes a share of the way for every fact."""

    share: float = 1.0

    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        return LowRankUpdate(self.share * problem.residuals, torch.linalg.pinv(problem.keys))


@pytest.mark.parametrize("share", [1.0, 0.25])
def test_a_method_from_outside_the_package_is_a_method_like_any_other(
    lm: EditableLM, facts: list[Fact], share: float
) -> None:
    weights = [lm.weight(layer).clone() for layer in range(3)]
    method = LeastSquares(share=share, latents=LatentOptions(steps=2))
    result = unlearn(lm, Request(facts, RetainText(TEXTS)), method, [1], "barn")
    scores = result.edits[1].scores
    assert scores.rank == len(facts)
    assert scores.residual_after == pytest.approx((1 - share) * scores.residual_before, abs=1e-6)
    assert torch.equal(lm.weight(1), (weights[1].double() + result.updates[1].dense()).float())
    assert [torch.equal(lm.weight(layer), weights[layer]) for layer in range(3)] == [True, False, True]


def test_a_method_from_outside_the_package_is_refused_like_any_other() -> None:
    with pytest.raises(InputError, match=r"LeastSquares\.share is -1: give zero or a positive number"):
        LeastSquares(share=-1)


def test_with_every_variant_a_method_minimizes_the_mean_distance_over_them() -> None:
    """Against MEMIT's normal equations with a column for every way to put every fact."""
    weight, problem = random_problem()
    put = problem.keys[:, :, None] + 0.5 * random(9, 3, 4, seed=5)
    mean = put.mean(2)
    varied = replace(problem, keys=mean, deviations=(put - mean[:, :, None]) / 4**0.5)
    found = Memit(scale_free=False, retain_weight=0.3)(weight, varied)

    columns, residuals = put.flatten(1) / 4**0.5, problem.residuals.repeat_interleave(4, 1) / 4**0.5
    system = 0.3 * problem.second_moment + columns @ columns.mT
    assert torch.allclose(found.dense(), residuals @ columns.mT @ torch.linalg.inv(system))
    assert found.rank == 3, "not one more for every way"
    assert not torch.allclose(found.dense(), Memit(scale_free=False)(weight, replace(varied, deviations=None)).dense())


@pytest.mark.parametrize("method", [Memit(), ZeroUnlearn(), ZeroUnlearnSoft()], ids=name)
def test_with_every_variant_all_of_them_are_moved_more_alike(method: EditingMethod) -> None:
    weight, problem = random_problem()
    put = problem.keys[:, :, None] + 0.5 * random(9, 3, 4, seed=5)
    mean = put.mean(2)
    varied = replace(problem, keys=mean, deviations=(put - mean[:, :, None]) / 4**0.5)

    def spread(update: LowRankUpdate) -> float:
        moved = torch.einsum("oi,inp->onp", update.dense(), put - mean[:, :, None])
        return float(moved.norm())

    assert spread(method(weight, varied)) < spread(method(weight, replace(varied, deviations=None)))


def test_methods_without_a_retain_term_solve_at_mean_keys() -> None:
    weight, problem = random_problem()
    varied = replace(problem, deviations=random(9, 3, 4, seed=5))
    method = AlphaEdit(threshold=0.5)
    assert torch.equal(method(weight, varied).dense(), method(weight, problem).dense())


def test_every_variant_needs_a_weight_of_what_is_kept() -> None:
    weight, problem = random_problem()
    varied = replace(problem, deviations=random(9, 3, 4, seed=5))
    with pytest.raises(InputError, match=r"Memit.retain_weight is 0"):
        Memit(retain_weight=0)(weight, varied)


@pytest.mark.parametrize("method", [Memit(), ZeroUnlearnSoft(ridge=0.0, zero_weight=0.0)], ids=name)
def test_with_a_mean_over_facts_one_weight_suits_any_number_of_them(method: RetainMethod) -> None:
    weight, problem = random_problem()
    mean, total = replace(method, retain_weight=0.1, mean_over_facts=True), replace(method, retain_weight=0.3)
    assert torch.allclose(mean(weight, problem).dense(), total(weight, problem).dense())
    weighed = replace(problem, fact_weights=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    assert torch.allclose(mean(weight, weighed).dense(), total(weight, weighed).dense())


VARIED = [*METHODS, Erase(), Memit(scale_free=False, protect_weight=2.0)]


def problem_of_many(facts: int) -> tuple[Tensor, LayerProblem]:
    """A layer's weight and its problem with all that a problem can have."""
    weight, problem = random_problem(facts=facts)
    return weight, replace(
        problem,
        protected_keys=random(9, 2, seed=5),
        deviations=0.1 * random(9, facts, 4, seed=6),
        fact_weights=1 + random(facts, seed=7).abs(),
    )


@pytest.mark.parametrize(("facts", "processes"), [(1, 3), (8, 2), (25, 2), (25, 3)])
def test_processes_that_share_facts_find_the_update_of_one(facts: int, processes: int, tmp_path: Path) -> None:
    weight, problem = problem_of_many(facts)

    def updates() -> list[Tensor]:
        own = own_columns(problem)
        assert own.keys.shape[1] <= -(-facts // processes)
        return [method(weight, own).dense() for method in VARIED]

    expected = [method(weight, problem).dense() for method in VARIED]
    for found in in_processes(processes, updates, tmp_path):
        for method, ours, alone in zip(VARIED, found, expected, strict=True):
            assert (ours - alone).norm() <= 1e-10 * alone.norm(), name(method)


@pytest.mark.parametrize("method", VARIED, ids=name)
def test_more_facts_than_keys_have_entries_are_solved_from_their_sums(method: EditingMethod) -> None:
    weight, problem = problem_of_many(25)
    from_columns = method.update(weight, method.in_units(problem))
    found = method(weight, problem)
    assert (found.dense() - from_columns.dense()).norm() <= 1e-10 * from_columns.dense().norm()
    if isinstance(method, Rome):
        assert found.rank == 25, "facts are met one by one"
    else:
        assert found.rank < from_columns.rank or found.rank <= 9
