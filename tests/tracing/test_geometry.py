"""Principal components against other ways to find them, and what planted movements look like in numbers."""

import math

import pytest
import torch
from torch import Tensor

from tests.conftest import random
from zu_lightning.tracing.geometry import movement, principal_components, separability

SHAPES = [(40, 7), (7, 40)]
"""More states than dimensions, and fewer."""


def spread(n: int, d: int) -> Tensor:
    """States that vary more in some directions than in others, far from the origin."""
    return random(n, d, seed=1) * torch.linspace(3, 0.5, d) @ random(d, d, seed=2) + 10


def agree_but_for_signs(found: Tensor, expected: Tensor) -> bool:
    """Whether each row is another's, or its negative."""
    signs = (found * expected).sum(1, keepdim=True).sign()
    return torch.allclose(signs * found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_components_are_eigenvectors_of_the_covariance(shape: tuple[int, int]) -> None:
    states = spread(*shape)
    mean, components, explained = principal_components(states)
    eigenvalues, vectors = torch.linalg.eigh(states.T.cov())
    assert torch.allclose(mean, states.mean(0))
    assert agree_but_for_signs(components, vectors.flip(1).T[:2])
    assert torch.allclose(explained, eigenvalues.flip(0)[:2] / eigenvalues.sum())
    assert 1 > explained[0] > explained[1] > 0


def test_the_sign_does_not_depend_on_how_states_are_ordered() -> None:
    states = spread(20, 6)
    components = principal_components(states)[1]
    assert torch.allclose(principal_components(states.flip(0))[1], components)
    assert (components.gather(1, components.abs().argmax(1, keepdim=True)) > 0).all()


@pytest.mark.parametrize("states", [torch.ones(5, 3), torch.ones(1, 3)])
def test_states_that_do_not_vary_explain_nothing(states: Tensor) -> None:
    assert principal_components(states)[2].tolist() == [0.0, 0.0]


def test_a_single_direction_leaves_nothing_for_the_second_component() -> None:
    _, components, explained = principal_components(torch.tensor([[-1.0], [1.0]]))
    assert components.tolist() == [[1.0], [0.0]]
    assert explained.tolist() == [1.0, 0.0]


def test_movement_is_counted_in_standard_deviations_of_the_group() -> None:
    before = torch.tensor([[0.0, 0.0], [2.0, 0.0]])  # variance of a sample: 2
    assert movement(before, before + torch.tensor([1.0, 1.0])) == pytest.approx((1.0, 1.0))
    apart = torch.tensor([[0.0, -2.0], [2.0, 2.0]])  # in opposite directions
    assert movement(before, apart) == pytest.approx((0.0, math.sqrt(2)))
    assert movement(before, before) == (0.0, 0.0)


@pytest.mark.parametrize("before", [torch.ones(1, 3), torch.ones(4, 3)])
def test_without_differences_between_facts_there_is_no_unit(before: Tensor) -> None:
    assert movement(before, before + 1) is None


@pytest.mark.parametrize(("n", "d"), [(3, 40), (60, 8)])
def test_what_has_not_moved_cannot_be_told_apart_and_what_has_moved_far_can(n: int, d: int) -> None:
    before = random(n, d, seed=3)
    assert separability(before, before) == pytest.approx(0.5, abs=1e-6)
    assert separability(before, before + 20 * random(d, seed=4)) == 1.0


@pytest.mark.parametrize("shape", [(100, 10), (100, 300)])
def test_noise_is_not_told_apart_from_noise(shape: tuple[int, int]) -> None:
    before = random(*shape, seed=5)
    assert separability(before, random(*shape, seed=6)) == pytest.approx(0.5, abs=0.12)
    assert separability(before, before + 0.01 * random(*shape, seed=6)) == pytest.approx(0.5, abs=0.12)


def test_separability_does_not_depend_on_units_axes_or_the_state_of_random_numbers() -> None:
    before, rotation = spread(30, 8), torch.linalg.qr(random(8, 8, seed=7))[0]
    after = before + 1.5 * random(8, seed=8)
    found = separability(before, after)
    state = torch.get_rng_state()
    assert 0.5 < (found or 0) < 1
    assert separability(100 * before @ rotation, 100 * after @ rotation) == pytest.approx(found, abs=1e-9)
    assert torch.equal(torch.get_rng_state(), state)


def discriminant(before: Tensor, after: Tensor, held_out: Tensor) -> Tensor:
    """Scores of held-out facts before and after, by the definition, in all dimensions."""
    train = [states[~held_out] for states in (before, after)]
    means = [states.mean(0) for states in train]
    within = torch.cat([states - mean for states, mean in zip(train, means, strict=True)])
    S = within.T @ within / len(within)
    direction = torch.linalg.solve(S + S.trace() / len(S) * torch.eye(len(S)).double(), means[1] - means[0])
    return torch.stack([(states[held_out] - (means[0] + means[1]) / 2) @ direction for states in (before, after)])


@pytest.mark.parametrize(("n", "d"), [(12, 30), (40, 6)])
def test_separability_is_the_area_under_the_curve_of_held_out_discriminants(n: int, d: int) -> None:
    before, scores = spread(n, d), torch.zeros(2, n, dtype=torch.float64)
    after = before + random(d, seed=8) + random(n, d, seed=9)
    for fold in torch.randperm(n, generator=torch.Generator().manual_seed(0)).tensor_split(5):
        held_out = torch.isin(torch.arange(n), fold)
        scores[:, held_out] = discriminant(before, after, held_out)
    expected = (scores[1][:, None] > scores[0]).double().mean().item()
    assert 0.5 < expected < 1
    assert separability(before, after) == pytest.approx(expected, abs=1e-6)


def test_few_or_equal_facts_cannot_teach_a_classifier() -> None:
    assert separability(random(2, 3, seed=1), random(2, 3, seed=2)) is None
    assert separability(torch.ones(3, 3), torch.zeros(3, 3)) is None
