"""Quantization: whether an edit is so small that rounding the weights undoes it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zu_lightning.attacks.answers import AnswerLogprobs
from zu_lightning.attacks.attack import QueryAttack, mean
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.offload import read_parameter, write_weight
from zu_lightning.solvers import LowRankUpdate

Bits = Literal["int8", "nf4"]
"""What weights are rounded to: 8-bit integers, or 4-bit NormalFloat."""
BITS: tuple[Bits, ...] = get_args(Bits)

BLOCK = 64
"""Number of weights that share a scale in NF4."""

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of NF4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of the normal distribution, with an exact zero."""


@dataclass(frozen=True, kw_only=True)
class Quantization(QueryAttack):
    """Whether the model gives the answer when its weights are rounded (arXiv 2410.16454).

    The rounding is simulated: the linear weights of all decoder layers get the values that a quantized model computes
    with, in the dtype they are stored in. Embeddings, head, and norms stay as they are.
    """

    bits: Bits = "nf4"
    """What weights are rounded to."""
    variant: Literal["merged", "adapter"] = "merged"
    """``merged`` rounds everything; ``adapter`` rounds the weights before the edit, and adds the edit unrounded."""
    updates: Mapping[int, LowRankUpdate] = field(default_factory=dict, compare=False, repr=False)
    """What the edit added to the output projections, by layer, for ``adapter``."""

    name = "quantization"

    def queries(self, context: AttackContext, i: int) -> Sequence[Query]:
        """The prompt, then its paraphrases."""
        return context.facts[i].queries

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Whether the prompt is answered exactly, and the share of paraphrases that are."""
        name = f"{self.name}_{self.bits}_{self.variant}"
        prompt, *paraphrases = [float(answer.exact) for answer in answers]
        return {name: prompt, f"{name}_paraphrases": mean(paraphrases)}

    def scores(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """Score the model with rounded weights."""
        with rounded(lm, self.bits, self.updates if self.variant == "adapter" else {}):
            return super().scores(lm, context, facts)


@contextmanager
def rounded(lm: EditableLM, bits: Bits, unrounded: Mapping[int, LowRankUpdate]) -> Iterator[None]:
    """Round the linear weights of all decoder layers, and restore them afterwards.

    Args:
        lm: The model.
        bits: What weights are rounded to.
        unrounded: By layer, updates of the output projections that are subtracted before rounding and added after it.
    """
    updates = {lm.projections[layer]: update for layer, update in unrounded.items()}
    kept: list[tuple[nn.Module, Tensor]] = []
    try:
        for module in _linear_modules(lm):
            weight = read_parameter(module, "weight").detach()
            kept.append((module, weight.to("cpu", copy=True)))  # a second model might not fit on the device
            write_weight(module, _rounded(weight, bits, updates.get(module)))
        yield
    finally:
        for module, weight in kept:
            write_weight(module, weight)


def int8(weight: Tensor) -> Tensor:
    """Each row (d_out x d_in) rounded to 255 equal steps between plus and minus its largest magnitude."""
    step = _scale(weight) / 127
    return (weight / step).round() * step


def nf4(weight: Tensor) -> Tensor:
    """Each block of 64 weights of a row-major matrix, the last one perhaps shorter, rounded to the nearest level."""
    blocks = nn.functional.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    levels = weight.new_tensor(NF4_LEVELS)
    scale = _scale(blocks)
    nearest = torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * scale).flatten()[: weight.numel()].view(weight.shape)


def _rounded(weight: Tensor, bits: Bits, update: LowRankUpdate | None) -> Tensor:
    rounding = int8 if bits == "int8" else nf4
    if update is None:
        return rounding(weight.float())
    above = update.dense().detach().to(weight.device, torch.float64)
    return rounding((weight - above).float()) + above


def _scale(rows: Tensor) -> Tensor:
    """The largest magnitude of each row, positive even if the row is zero."""
    return rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)


def _linear_modules(lm: EditableLM) -> list[nn.Module]:
    """The linear modules of all decoder layers, each once; GPT-2's are called Conv1D."""
    modules = (module for layer in lm.layers for module in layer.modules())
    return list(dict.fromkeys(module for module in modules if isinstance(module, (nn.Linear, Conv1D))))
