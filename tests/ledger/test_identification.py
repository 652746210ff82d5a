"""Which requests a model contains is found out from its weights."""

import pytest
import torch

from tests.conftest import random_lm
from tests.ledger.conftest import LAYERS, Project, people
from zu_lightning import EditableLM, InputError
from zu_lightning.ledger.identification import identify
from zu_lightning.lm.updates import apply_updates


@pytest.fixture
def three(project: Project) -> Project:
    for fact in people(3):
        project.add([fact])
    return project


def with_requests(project: Project, numbers: list[int]) -> EditableLM:
    lm, ledger = project.load_base(), project.ledger
    apply_updates(lm, [ledger.previous(ledger.request(number)).updates for number in numbers])
    return lm


@pytest.mark.parametrize("numbers", [[], [1], [1, 2], [1, 2, 3], [1, 3], [3]])
def test_any_subset_of_requests_is_recognized(numbers: list[int], three: Project) -> None:
    found = identify(three.ledger, with_requests(three, numbers), three.load_base())
    assert found.contained == numbers
    assert not found.partial
    assert found.unexplained < 1e-3
    in_order = numbers == list(range(1, len(numbers) + 1))
    assert found.line == (len(numbers) if in_order else None)
    assert not found.others_differ


def test_rounded_weights_are_recognized_but_not_to_the_last_bit(three: Project) -> None:
    lm = with_requests(three, [1, 2])
    for layer in LAYERS:
        lm.set_weight(layer, lm.weight(layer).bfloat16().float())
    found = identify(three.ledger, lm, three.load_base())
    assert found.contained == [1, 2]
    assert found.line is None


def test_half_of_an_update_is_neither_in_the_model_nor_out_of_it(three: Project) -> None:
    lm = with_requests(three, [1])
    (previous,) = (three.ledger.previous(three.ledger.request(2)),)
    for layer in LAYERS:
        lm.set_weight(layer, lm.weight(layer) + previous.layers[layer].update.dense().float() / 2)
    found = identify(three.ledger, lm, three.load_base())
    assert found.contained == [1]
    assert found.partial == [2]
    assert found.coefficients[2] == pytest.approx(0.5, abs=1e-3)


def test_what_no_request_explains_is_told(three: Project) -> None:
    lm = with_requests(three, [1, 2, 3])
    noise = torch.randn_like(lm.weight(0))
    lm.set_weight(0, lm.weight(0) + noise)
    lm.model.get_input_embeddings().weight.data.add_(1.0)  # type: ignore[operator]
    found = identify(three.ledger, lm, three.load_base())
    difference = sum((lm.weight(i) - three.load_base().weight(i)).square().sum() for i in LAYERS)
    assert found.unexplained == pytest.approx((noise.square().sum() / difference).sqrt().item(), rel=0.2)
    assert found.others_differ


def test_another_base_model_is_refused(three: Project) -> None:
    other = random_lm("llama")
    other.set_weight(LAYERS[0], other.weight(LAYERS[0]) + 1)
    with pytest.raises(InputError, match=rf"base is .*layer {LAYERS[0]}.*give the base model"):
        identify(three.ledger, three.lm, other)


def test_a_model_of_another_shape_is_refused(three: Project) -> None:
    small = random_lm("llama")
    for layer in LAYERS:
        small.projections[layer].weight = torch.nn.Parameter(torch.zeros(2, 3))
    with pytest.raises(InputError, match="not a model of this project"):
        identify(three.ledger, small, three.load_base())
