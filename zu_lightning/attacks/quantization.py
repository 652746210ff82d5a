"""Rounding the weights: whether an edit was so small that fewer bits undo it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zu_lightning.attacks.answers import reading, score_answers_by_fact
from zu_lightning.attacks.attack import Attack, mean
from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.offload import read_parameter, write_weight
from zu_lightning.solvers import LowRankUpdate

Bits = Literal["int8", "nf4"]
"""To what weights are rounded: 8-bit integers, or 4-bit NormalFloat."""

BLOCK = 64
"""Number of weights that share a scale in NF4."""

NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The levels of NF4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of the normal distribution, with an exact zero."""


@dataclass(frozen=True, kw_only=True)
class Quantization(Attack):
    """Whether the model still, or again, gives the answer when its weights are rounded (arXiv 2410.16454).

    The rounding is simulated: the linear weights of all decoder layers get the values that a quantized model computes
    with, in the dtype they are stored in. Embeddings, head, and norms stay as they are. In ``merged`` everything is
    rounded; in ``adapter`` the weights before the edit are, and the edit is added on top of them unrounded.
    """

    bits: Bits = "nf4"
    """To what weights are rounded."""
    updates: Mapping[int, LowRankUpdate] | None = field(default=None, compare=False, repr=False)
    """What the edit has added to the output projections, by layer; without them there are no scores of ``adapter``."""

    name = "quantization"

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Quantization`; those of paraphrases apart."""
        variants = [f"{self.name}_{self.bits}_{variant}" for variant in self._variants]
        return [name + ending for name in variants for ending in ("", "_paraphrases")]

    def tokens(self, exam: AttackContext) -> int:
        """Every answer after its prompts, once or twice."""
        return len(self._variants) * reading(lambda i: exam.facts[i].queries, range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact whether its prompt is answered exactly, and the share of its paraphrases that are."""
        found: list[list[float]] = []
        for updates in self._variants.values():
            with rounded(lm, self.bits, updates):
                answers = score_answers_by_fact(lm, lambda i: exam.facts[i].queries, facts, exam.batch_tokens)
            exact = [[float(answer.exact) for answer in of_fact] for of_fact in answers]
            found += [[prompt for prompt, *_ in exact], [mean(others) for _, *others in exact]]
        return dict(zip(self.names(exam), found, strict=True))

    @property
    def _variants(self) -> dict[str, Mapping[int, LowRankUpdate]]:
        """What stays unrounded, by the name of the variant."""
        return {"merged": {}} | ({} if self.updates is None else {"adapter": self.updates})


@contextmanager
def rounded(lm: EditableLM, bits: Bits, unrounded: Mapping[int, LowRankUpdate]) -> Iterator[None]:
    """Within this context the linear weights of all decoder layers are rounded; afterwards they are as before.

    Args:
        lm: The model.
        bits: To what weights are rounded.
        unrounded: By layer, parts of the output projections' weights that are taken out before, and put back after.
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
