"""Interventions by hand, on the plain model."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zu_lightning import EditableLM, Fact
from zu_lightning.lm import hooks
from zu_lightning.lm.tokens import TokenizedText
from zu_lightning.tracing.indirect_effects import traceable


@pytest.fixture
def traced(facts: list[Fact]) -> list[Fact]:
    return traceable(facts)


def forward(lm: EditableLM, text: TokenizedText) -> Tensor:
    logits: Tensor = lm.model(torch.tensor([text.ids])).logits[0]
    return logits.double().log_softmax(-1)


@torch.no_grad()
def output(lm: EditableLM, text: TokenizedText, module: nn.Module) -> Tensor:
    """T x D of a single text."""
    return hooks.output_of(module, lambda: forward(lm, text), 1, lm.device)[0]


@contextmanager
def replaced(module: nn.Module, positions: Sequence[int], states: Tensor) -> Iterator[None]:
    """Other states at some positions of a module's output, for a single text; OPT's MLP has no dimension for texts."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden.clone()
        changed.view(-1, changed.shape[-1])[list(positions)] = states
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    with hooks.hooked(module.register_forward_hook(hook)):
        yield


@torch.no_grad()
def probability(
    lm: EditableLM, text: TokenizedText, changes: Sequence[tuple[nn.Module, Sequence[int], Tensor]]
) -> float:
    """Probability of the answer with other states of some modules at some positions."""
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(replaced(*change))
        log_probability = forward(lm, text)
    return math.exp(sum(log_probability[i - 1, text.ids[i]].item() for i in range(text.answer, len(text.ids))))
