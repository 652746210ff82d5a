"""The units in which a method's weights mean the same in every model."""

from dataclasses import replace

import torch

from tests.conftest import random, random_problem
from zu_lightning import LayerProblem


def test_scale_free_keys_have_norm_one_and_the_moment_has_mean_eigenvalue_one() -> None:
    _, problem = random_problem(scale=100.0)
    free = problem.scale_free()
    assert torch.allclose(free.keys.norm(dim=0), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(torch.linalg.eigvalsh(free.second_moment).mean(), torch.ones((), dtype=torch.float64))
    assert free.layer == problem.layer


def test_an_update_solves_both_problems_alike() -> None:
    weight, problem = random_problem()
    free = problem.scale_free()
    update = problem.residuals @ torch.linalg.pinv(problem.keys)
    assert torch.allclose(update @ free.keys, free.residuals)
    # What is missing along the values has one direction in both.
    for ours, theirs in ((problem.values, free.values), (weight @ problem.keys, weight @ free.keys)):
        assert torch.allclose(ours / problem.keys.norm(dim=0), theirs)


def test_models_of_any_scale_have_the_same_scale_free_problem_but_for_the_size_of_their_outputs() -> None:
    small, large = (random_problem(scale)[1].scale_free() for scale in (1.0, 100.0))
    assert torch.allclose(small.keys, large.keys)
    assert torch.allclose(small.second_moment, large.second_moment)
    assert torch.allclose(small.residuals, 100 * large.residuals)


def test_a_key_of_zero_stays_finite() -> None:
    _, problem = random_problem()
    keys = problem.keys.clone()
    keys[:, 1] = 0.0
    free = LayerProblem(0, keys, problem.residuals, problem.values, problem.second_moment).scale_free()
    assert torch.equal(free.keys[:, 1], torch.zeros(9, dtype=torch.float64))
    assert torch.allclose(free.keys[:, [0, 2]].norm(dim=0), torch.ones(2, dtype=torch.float64))


def test_protected_keys_join_the_second_moment() -> None:
    _, problem = random_problem()
    keys = random(9, 2, seed=9)
    protecting = replace(problem, protected_keys=keys)
    sum_of_squares = keys @ keys.mT
    absolute = protecting.protecting(0.3, relative=False).second_moment
    assert torch.allclose(absolute, problem.second_moment + 0.3 * sum_of_squares)
    added = protecting.protecting(0.3, relative=True).second_moment - problem.second_moment
    assert torch.allclose(added.trace(), 0.3 * problem.second_moment.trace())
    assert torch.allclose(added / added.trace(), sum_of_squares / sum_of_squares.trace())


def test_nothing_to_protect_changes_nothing() -> None:
    _, problem = random_problem()
    assert problem.protecting(0.3, relative=True) is problem
    none = replace(problem, protected_keys=random(9, 0, seed=9))
    assert none.protecting(0.3, relative=True) is none
    some = replace(problem, protected_keys=random(9, 2, seed=9))
    assert some.protecting(0.0, relative=True) is some


def test_deviations_are_in_the_units_of_their_facts_keys() -> None:
    _, problem = random_problem(scale=100.0)
    free = replace(problem, deviations=100 * random(9, 3, 4, seed=9)).scale_free()
    assert free.deviations is not None
    for i in range(3):
        assert torch.allclose(free.deviations[:, i], 100 * random(9, 3, 4, seed=9)[:, i] / problem.keys[:, i].norm())


def test_how_keys_vary_joins_the_second_moment_once() -> None:
    _, problem = random_problem()
    deviations = random(9, 3, 4, seed=9)
    varied = replace(problem, deviations=deviations).averaged_over_prompts(0.5)
    covariance = torch.stack([column[:, None] @ column[None] for column in deviations.flatten(1).mT]).sum(0)
    assert torch.allclose(varied.second_moment, problem.second_moment + 0.5 * covariance)
    assert varied.deviations is None
    assert problem.averaged_over_prompts(0.5) is problem
