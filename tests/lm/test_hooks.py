"""Looking into a forward pass and changing it, on modules small enough to see through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import batch_of
from zu_lightning import EditableLM
from zu_lightning.lm import hooks

ROWS, LENGTH, WIDTH = 2, 3, 4
HIDDEN = torch.arange(ROWS * LENGTH * WIDTH, dtype=torch.float32).view(ROWS, LENGTH, WIDTH)
CPU = torch.device("cpu")


class Plus(nn.Module):
    """Adds a number and counts what it was called with; returns a tuple if asked to, as layers do in transformers 4."""

    def __init__(self, number: float, *, in_tuple: bool = False) -> None:
        super().__init__()
        self.number, self.in_tuple = number, in_tuple
        self.received: list[Tensor] = []

    def forward(self, hidden_states: Tensor) -> Any:
        self.received.append(hidden_states)
        moved = hidden_states + self.number
        return (moved, "the rest") if self.in_tuple else moved


@pytest.fixture
def stack() -> list[Plus]:
    return [Plus(1.0), Plus(10.0), Plus(100.0)]


def run(stack: list[Plus], hidden: Tensor = HIDDEN) -> Any:
    for module in stack:
        hidden = module(hidden)
    return hidden


def test_records_come_in_the_order_asked_for(stack: list[Plus]) -> None:
    with hooks.recording([stack[2], stack[0]], ROWS, CPU) as records:
        run(stack)
    assert [(int(r.input[0, 0, 0]), int(r.output[0, 0, 0])) for r in records] == [(11, 111), (0, 1)]


def test_a_pass_stops_when_all_is_seen_if_asked_to(stack: list[Plus]) -> None:
    with hooks.recording([stack[1], stack[0]], ROWS, CPU, stop=True) as records:
        run(stack)
        pytest.fail("the pass went on")
    assert len(records) == 2
    assert not stack[2].received
    assert torch.equal(run(stack), HIDDEN + 111)  # and the next one is left alone


@pytest.mark.parametrize("in_tuple", [False, True])
def test_the_hidden_state_is_recorded_however_it_is_passed(in_tuple: bool) -> None:
    module = Plus(1.0, in_tuple=in_tuple)
    for args, kwargs in (((HIDDEN,), {}), ((), {"hidden_states": HIDDEN}), ((HIDDEN.view(-1, WIDTH),), {})):
        with hooks.recording([module], ROWS, CPU) as records:
            module(*args, **kwargs)
        assert torch.equal(records[0].input, HIDDEN)
        assert torch.equal(records[0].output, HIDDEN + 1)


@pytest.mark.parametrize("in_tuple", [False, True])
@pytest.mark.parametrize("shape", [(ROWS, LENGTH, WIDTH), (ROWS * LENGTH, WIDTH)])
def test_a_shift_sees_rows_and_keeps_the_shape(in_tuple: bool, shape: tuple[int, ...]) -> None:
    module = Plus(1.0, in_tuple=in_tuple)
    by_row = torch.tensor([10.0, 20.0])[:, None, None]
    with hooks.shifted(module, lambda hidden: hidden + by_row, ROWS, CPU):
        output = module(HIDDEN.view(shape))
    hidden = output[0] if in_tuple else output
    assert torch.equal(hidden, (HIDDEN + 1 + by_row).view(shape))
    assert not in_tuple or output[1] == "the rest"


def test_skipped_layers_compute_nothing_and_hand_the_hidden_state_on(stack: list[Plus]) -> None:
    with hooks.skipped(stack[:2], HIDDEN * 2, as_tuple=False):
        assert torch.equal(run(stack), HIDDEN * 2 + 100)
    assert not stack[0].received
    assert not stack[1].received
    assert torch.equal(run(stack), HIDDEN + 111)


def test_a_skipped_layer_returns_a_tuple_where_others_do() -> None:
    module = Plus(1.0, in_tuple=True)
    with hooks.skipped([module], HIDDEN, as_tuple=True):
        (output,) = module(HIDDEN * 2)
    assert output is HIDDEN


def test_without_modules_nothing_is_skipped(stack: list[Plus]) -> None:
    nowhere = torch.tensor([0])
    with hooks.skipped(stack[:0], None, as_tuple=False), hooks.computed_at(None, nowhere, nowhere):
        assert torch.equal(run(stack), HIDDEN + 111)


def test_a_module_is_computed_at_the_given_places_only() -> None:
    module = Plus(1.0)
    rows, positions = torch.tensor([0, 1]), torch.tensor([2, 0])
    with hooks.computed_at(module, rows, positions):
        output = module(HIDDEN)
    assert module.received[0].shape == (1, len(rows), WIDTH)
    expected = torch.zeros_like(HIDDEN)
    expected[rows, positions] = HIDDEN[rows, positions] + 1
    assert torch.equal(output, expected)
    assert torch.equal(module(HIDDEN), HIDDEN + 1)


def test_a_gradient_passes_through_the_places_that_are_computed() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    module = Plus(1.0)
    with hooks.computed_at(module, torch.tensor([1]), torch.tensor([2])):
        module(hidden).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.any(-1).nonzero().tolist() == [[1, 2]]


def test_a_module_can_be_given_some_places_only() -> None:
    module = Plus(1.0)
    with hooks.input_selected(module, torch.tensor([0, 1]), torch.tensor([2, 0])):
        assert torch.equal(module(HIDDEN), HIDDEN[[0, 1], [2, 0]] + 1)
    assert torch.equal(module(HIDDEN), HIDDEN + 1)


CONTEXTS: dict[str, Callable[[nn.Module], Any]] = {
    "recording": lambda module: hooks.recording([module], ROWS, CPU),
    "shifted": lambda module: hooks.shifted(module, torch.neg, ROWS, CPU),
    "skipped": lambda module: hooks.skipped([module], HIDDEN * 2, as_tuple=False),
    "computed_at": lambda module: hooks.computed_at(module, torch.tensor([0]), torch.tensor([0])),
    "input_selected": lambda module: hooks.input_selected(module, torch.tensor([0]), torch.tensor([0])),
}


@pytest.mark.parametrize("name", sorted(CONTEXTS))
def test_an_error_leaves_no_hook(name: str) -> None:
    module = Plus(1.0)
    with pytest.raises(KeyError, match="stop"), CONTEXTS[name](module):
        raise KeyError("stop")
    assert torch.equal(module(HIDDEN), HIDDEN + 1)
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


@pytest.mark.parametrize("name", ["skipped", "computed_at"])
def test_a_forward_that_somebody_else_has_replaced_comes_back(name: str) -> None:
    module = Plus(1.0)
    replaced = lambda hidden: hidden * 7  # noqa: E731  accelerate does the same to offloaded modules
    module.forward = replaced  # type: ignore[method-assign]
    with CONTEXTS[name](module):
        assert module.forward is not replaced
    assert module.forward is replaced


@pytest.mark.parametrize("in_tuple", [False, True])
def test_whether_layers_return_tuples_is_seen_without_what_lies_above(in_tuple: bool, stack: list[Plus]) -> None:
    stack[0].in_tuple = in_tuple
    assert hooks.returns_tuple(stack[0], lambda: run(stack)) == in_tuple
    assert not stack[1].received
    assert not stack[0]._forward_hooks


def test_a_model_is_resumed_with_what_its_own_layers_return(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    kinds: list[bool] = []
    with hooks.hooked(any_lm.layers[0].register_forward_hook(lambda *args: kinds.append(isinstance(args[2], tuple)))):
        (record,) = any_lm.record(batch, [any_lm.layers[1]])
        with any_lm.resumed(1, record.input):
            any_lm.record(batch, [any_lm.layers[1]])
    assert len(kinds) >= 2
    assert len(set(kinds)) == 1
