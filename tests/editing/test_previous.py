"""Facts of earlier requests in the problem of a later one."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import random, random_problem
from zu_lightning import AlphaEdit, EditableLM, EditingMethod, Fact, Memit, ZeroUnlearn, ZeroUnlearnGD, ZeroUnlearnSoft
from zu_lightning.editing.editor import write_update
from zu_lightning.editing.keys import lookup_keys
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.previous import with_previous
from zu_lightning.editing.request import PreviousLayer, PreviousRequest
from zu_lightning.solvers import LowRankUpdate

CONTEXTS = ("",)
UPDATE = LowRankUpdate(random(6, 1, seed=1), random(1, 9, seed=2))
KEYS, VALUES = random(9, 2, seed=3), random(6, 2, seed=4)


def request(facts: tuple[Fact, ...] = (), layer: int = 0, deviations: torch.Tensor | None = None) -> PreviousRequest:
    return PreviousRequest(1, {layer: PreviousLayer(UPDATE, {}, KEYS, VALUES, deviations)}, facts)


def joined(lm: EditableLM, **options: object) -> LayerProblem:
    return with_previous(random_problem()[1], lm, [request(**options)], CONTEXTS)  # type: ignore[arg-type]


def test_without_earlier_requests_nothing_changes(lm: EditableLM) -> None:
    problem = random_problem()[1]
    assert with_previous(problem, lm, [], CONTEXTS) is problem


def test_earlier_facts_come_last_with_nowhere_to_go(lm: EditableLM) -> None:
    problem = joined(lm)
    assert torch.equal(problem.keys[:, 3:], KEYS)
    assert torch.equal(problem.values[:, 3:], VALUES)
    assert not problem.residuals[:, 3:].any()
    assert problem.previous == 2
    own, alone = problem.without_previous(), random_problem()[1]
    assert torch.equal(own.keys, alone.keys)
    assert torch.equal(own.residuals, alone.residuals)
    assert own.previous == 0


def test_ways_to_put_facts_may_differ_in_number(lm: EditableLM) -> None:
    own, earlier = random(9, 3, 2, seed=5), random(9, 2, 4, seed=6)
    problem = replace(random_problem()[1], deviations=own)
    found = with_previous(problem, lm, [request(deviations=earlier), request()], CONTEXTS).deviations
    assert found is not None
    assert found.shape == (9, 7, 4)
    assert torch.equal(found[:, :3, :2], own)
    assert torch.equal(found[:, 3:5], earlier)
    assert not found[:, :3, 2:].any()
    assert not found[:, 5:].any()


@pytest.mark.parametrize("method", [Memit(), AlphaEdit(threshold=3), ZeroUnlearnSoft(), ZeroUnlearnGD(threshold=3)])
def test_outputs_at_earlier_keys_change_less_than_they_would(method: EditingMethod, lm: EditableLM) -> None:
    weight, alone = random_problem()
    weight = weight - VALUES @ torch.linalg.lstsq(VALUES, weight).solution  # the earlier values are gone already
    kept, free = (method(weight, problem) for problem in (joined(lm), alone))
    changes = [(update.dense() @ KEYS).norm().item() for update in (kept, free)]
    assert changes[0] < 0.9 * changes[1]


def test_a_multiplicative_method_takes_earlier_facts_too(lm: EditableLM) -> None:
    weight, _ = random_problem()
    assert torch.isfinite(ZeroUnlearn()(weight, joined(lm)).dense()).all()


def test_scores_are_of_the_request_alone(lm: EditableLM, facts: list[Fact]) -> None:
    d_out, d_in = lm.weight(0).shape
    problem = LayerProblem(
        0, random(d_in, 2, seed=1), random(d_out, 2, seed=2), random(d_out, 2, seed=3), torch.eye(d_in).double()
    )
    layer = PreviousLayer(UPDATE, {}, random(d_in, 5, seed=4), random(d_out, 5, seed=5))
    update = LowRankUpdate(random(d_out, 1, seed=6), random(1, d_in, seed=7))
    together = with_previous(problem, lm, [PreviousRequest(1, {0: layer})], CONTEXTS)
    before = lm.weight(0).clone()
    alone = write_update(lm, problem, update).scores
    lm.set_weight(0, before)
    assert write_update(lm, together, update).scores == alone


def test_at_another_layer_keys_are_read_from_the_texts_if_they_were_kept(
    lm: EditableLM, facts: list[Fact], caplog: pytest.LogCaptureFixture
) -> None:
    d_out, d_in = lm.weight(1).shape
    problem = LayerProblem(
        1, random(d_in, 2, seed=1), random(d_out, 2, seed=2), random(d_out, 2, seed=3), torch.eye(d_in).double()
    )
    found = with_previous(problem, lm, [request((facts[0], facts[1]))], CONTEXTS)
    assert torch.equal(found.keys[:, 2:], lookup_keys(lm, facts[:2], 1, CONTEXTS))
    assert not found.values[:, 2:].any()
    assert with_previous(problem, lm, [request()], CONTEXTS) is problem
    assert "request 1 did not edit layer 1, and its texts were not kept" in caplog.text
