"""Which weights a gradient method trains, and how to look at the model without what they have learned."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from zu_lightning.gradient.method import LoraOptions
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.export import export_adapter, exported
from zu_lightning.solvers import LowRankUpdate

RANK_TOLERANCE = 1e-5
"""Singular values of a weight's change below this share of the largest count as zero: weights are float32 at best."""

LOW_RANK = 0.5
"""A change whose rank is at most this share of the weight's smaller side leaves as an adapter, too."""


class TrainedWeights(nn.Module, ABC):
    """Weights of a language model that are trained; the only ones that checkpoints and DDP know."""

    def learned(self) -> list[nn.Parameter]:
        """The parameters that are trained."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    @abstractmethod
    def reference(self) -> AbstractContextManager[None]:
        """Within this context the language model is as it was before training."""

    @abstractmethod
    def write_adapter(self, folder: Path, max_rank: int | None = None) -> Path | None:
        """Write what was learned as a PEFT adapter, if it is low-rank; the folder, or ``None``.

        Args:
            folder: Where to write.
            max_rank: A change of a higher rank is replaced by the closest one of this rank, unless it was trained as an
                adapter: that is written as it is.
        """

    @abstractmethod
    def merge(self) -> None:
        """Put what was learned into the language model's own weights, if it is elsewhere."""


class FullWeights(TrainedWeights):
    """Whole weights: the output projections of some layers, or everything.

    Args:
        lm: The language model.
        layers: Layers whose output projections are trained; ``None`` for all weights.
        keep_originals: Whether to keep a copy of each weight, as the reference and to know what has changed.
    """

    def __init__(self, lm: EditableLM, layers: Sequence[int] | None, *, keep_originals: bool = True) -> None:
        super().__init__()
        self.lm, self.layers = lm, layers
        self.modules_trained = nn.ModuleList([lm.model] if layers is None else [lm.projections[i] for i in layers])
        self.modules_trained.requires_grad_(True)
        self.originals = [parameter.detach().clone() for parameter in self.learned()] if keep_originals else []

    @contextmanager
    def reference(self) -> Iterator[None]:
        """See :meth:`TrainedWeights.reference`."""
        present = [parameter.data for parameter in self.learned()]
        self._put(self.originals)
        try:
            yield
        finally:
            self._put(present)

    def write_adapter(self, folder: Path, max_rank: int | None = None) -> Path | None:
        """See :meth:`TrainedWeights.write_adapter`."""
        updates = {} if self.layers is None else {layer: self._change(layer) for layer in self.layers}
        if not updates or any(update.rank > LOW_RANK * min(self.lm.weight(i).shape) for i, update in updates.items()):
            return None
        return export_adapter(self.lm, updates, folder, max_rank)

    def merge(self) -> None:
        """The weights are the language model's own."""

    def _change(self, layer: int) -> LowRankUpdate:
        """What training has added to the output projection of a layer, as factors of its numerical rank."""
        present = self.lm.weight(layer).detach().double()
        with self.reference():
            change = present - self.lm.weight(layer).detach().double()
        left, s, right = torch.linalg.svd(change, full_matrices=False)
        kept = s > RANK_TOLERANCE * s.max()
        kept[0] = True  # an adapter has a rank even if training moved nothing that the dtype can hold
        return LowRankUpdate(left[:, kept] * s[kept], right[kept])

    def _put(self, values: Sequence[torch.Tensor]) -> None:
        for parameter, value in zip(self.learned(), values, strict=True):
            parameter.data = value


class LoraWeights(TrainedWeights):
    """A LoRA adapter; the reference is the same model with the adapter switched off.

    Args:
        lm: The language model.
        layers: Layers whose output projections get an adapter, unless all linear modules do.
        options: The adapter.
        seed: Seed of the adapter's start.
    """

    def __init__(self, lm: EditableLM, layers: Sequence[int], options: LoraOptions, seed: int) -> None:
        super().__init__()
        config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=lm.name_or_path,
            r=options.rank,
            lora_alpha=cast("int", options.alpha),
            lora_dropout=options.dropout,
            target_modules="all-linear" if options.all_linear else [lm.weight_name(layer) for layer in layers],
        )
        with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self.model: Any = get_peft_model(lm.model, config)
        lm.model.train(False)
        for name, module in lm.model.named_modules():
            if name.endswith("lora_dropout"):  # the adapter's; the model's own stays off
                module.train()

    def reference(self) -> AbstractContextManager[None]:
        """See :meth:`TrainedWeights.reference`."""
        return cast("AbstractContextManager[None]", self.model.disable_adapter())

    def write_adapter(self, folder: Path, max_rank: int | None = None) -> Path:
        """See :meth:`TrainedWeights.write_adapter`."""
        with exported(folder) as temporary:
            cast("PeftModel", self.model).save_pretrained(str(temporary))
        return folder

    def merge(self) -> None:
        """See :meth:`TrainedWeights.merge`."""
        self.model.merge_and_unload()
