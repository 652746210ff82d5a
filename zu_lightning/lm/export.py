"""The edited model as a Hugging Face directory, and the edit alone as a PEFT LoRA adapter."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zu_lightning.lm.adapter import CONFIG_NAME, CUT_FROM, WEIGHTS_NAME, balanced, cut, padded
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.loading import load_model, source_options
from zu_lightning.lm.tokens import TokenBatch, collate, tokenize_all
from zu_lightning.lm.updates import apply_update
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import replacing
from zu_lightning.solvers import LowRankUpdate


def export_model(lm: EditableLM, folder: str | Path) -> Path:
    """Write model and tokenizer as a directory that ``AutoModelForCausalLM.from_pretrained`` loads.

    Args:
        lm: The edited model.
        folder: Where to write; replaced if it exists, and never half written.

    Returns:
        The folder.

    Raises:
        InputError: The folder has other files, or the unedited model came from there.
    """
    if lm.name_or_path and Path(folder).resolve() == Path(lm.name_or_path).resolve():
        raise InputError("folder", str(folder), "the unedited model came from there: choose another folder.")
    with exported(Path(folder)) as temporary:
        lm.model.save_pretrained(temporary)
        lm.tokenizer.save_pretrained(temporary)
    return Path(folder)


def export_adapter(
    lm: EditableLM, updates: Mapping[int, LowRankUpdate], folder: str | Path, max_rank: int | None = None
) -> Path:
    """Write an edit as a PEFT LoRA adapter of the exact low-rank difference.

    Its rank is at most 2 n per layer, or as high as the weight's after a dense Delta was trained. All layers get the
    highest rank, with factors padded by zeros, and alpha is the rank: servers support one rank and one alpha only.

    Args:
        lm: The edited model.
        updates: For each edited layer, the sum of all updates of its weight.
        folder: Where to write; replaced if it exists, and never half written.
        max_rank: A layer's difference of a higher rank is replaced by the closest one of this rank (a truncated SVD);
            by default it is exact, whatever its rank.

    Returns:
        The folder. ``PeftModel.from_pretrained(base, folder)`` is the edited model, ``unload()`` the base again.

    Raises:
        InputError: The folder has other files.
        ValueError: There are no updates.
    """
    if not updates:
        raise ValueError("there is no adapter to write: nothing has been edited.")
    exact = {lm.weight_name(layer): balanced(update) for layer, update in sorted(updates.items())}
    factors = {name: cut(update, max_rank) for name, update in exact.items()}
    rank, exact_rank = (max(update.rank for update in by_name.values()) for by_name in (factors, exact))
    config = LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=lm.name_or_path,
        target_modules=list(factors),
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(lm.projections[layer], Conv1D) for layer in updates),
        inference_mode=True,
    )
    tensors = {}
    for name, update in factors.items():
        equal = padded(update, rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = equal.right.float().cpu().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = equal.left.float().cpu().contiguous()
    with exported(Path(folder)) as temporary:
        config.save_pretrained(str(temporary))
        metadata = {"format": "pt"} | ({CUT_FROM: str(exact_rank)} if rank < exact_rank else {})
        save_file(tensors, temporary / WEIGHTS_NAME, metadata=metadata)
    return Path(folder)


@dataclass(frozen=True)
class ExportCheck:
    """Largest absolute differences of a logit.

    Attributes:
        model: Between the reloaded model and the one in memory.
        adapter: Between the base with the adapter and the model in memory; ``None`` without an adapter. Zero up to
            rounding in float32; in bfloat16 and float16 the edited weights were rounded, and the adapter was not.
        edit: Between the base and the model in memory, as the size of the edit's effect.
        rounded: Between the base with the adapter and the same with factors rounded to bfloat16, in which most servers
            hold them; ``None`` without an adapter.
        spacing: At the largest logit, distance to the next number of the model's dtype, the precision of a logit.
    """

    model: float
    adapter: float | None
    edit: float
    rounded: float | None = None
    spacing: float = 0.0


def check_export(lm: EditableLM, model_folder: Path, adapter_folder: Path | None, texts: Sequence[str]) -> ExportCheck:
    """Reload the exported model and adapter, and compare them with the model in memory.

    Args:
        lm: The edited model.
        model_folder: Written by :func:`export_model`.
        adapter_folder: Written by :func:`export_adapter`; ``None`` without an adapter. The base is loaded again.
        texts: Texts to compare on.

    Returns:
        The largest differences of logits.
    """
    batch = collate(tokenize_all(lm.tokenizer, texts), lm.tokenizer).to(lm.device)
    here = _logits(lm.model, batch)
    spacing = torch.finfo(lm.model.dtype).eps * here.abs().max().item()

    as_before = {"device_map": {"": lm.device}} | lm.load_options
    exported = {name: value for name, value in as_before.items() if name not in source_options(as_before)}

    def load(source: str | Path, options: dict[str, Any]) -> PreTrainedModel:
        return load_model(source, lm.model.dtype, options)

    model = _difference(_logits(load(model_folder, exported), batch), here)
    base = load(lm.name_or_path, as_before)
    edit = _difference(_logits(base, batch), here)
    if adapter_folder is None:
        return ExportCheck(model, None, edit, spacing=spacing)
    if EditableLM(base, lm.tokenizer).is_dispatched:
        with_adapter = _logits(_merged(EditableLM(base, lm.tokenizer), adapter_folder), batch)
        del base  # such a model is large
        again = EditableLM(load(lm.name_or_path, as_before), lm.tokenizer)
        rounded = _logits(_merged(again, adapter_folder, torch.bfloat16), batch)
    else:
        adapted = PeftModel.from_pretrained(base, adapter_folder)
        with_adapter = _logits(adapted, batch)
        for name, factor in adapted.named_parameters():
            if ".lora_" in name:
                factor.data = factor.data.bfloat16().to(factor.dtype)
        rounded = _logits(adapted, batch)
    return ExportCheck(model, _difference(with_adapter, here), edit, _difference(rounded, with_adapter), spacing)


def _difference(logits: Tensor, others: Tensor) -> float:
    return (logits - others).abs().max().item()


def _merged(lm: EditableLM, adapter: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The base with the adapter added to its weights: PEFT does not load adapters of offloaded modules (0.21)."""
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(adapter / WEIGHTS_NAME).items()}
    for layer in range(len(lm.layers)):
        name = f"base_model.model.{lm.weight_name(layer)}"
        if f"{name}.lora_A.weight" in tensors:
            update = LowRankUpdate(tensors[f"{name}.lora_B.weight"], tensors[f"{name}.lora_A.weight"])
            apply_update(lm, layer, update)
    return lm.model


@torch.no_grad()
def _logits(model: PreTrainedModel | PeftModel, batch: TokenBatch) -> Tensor:
    output: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return output[batch.attention_mask.bool()].float()


@contextmanager
def exported(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``folder``, which may be a previous export but must not have other files."""
    markers = ("config.json", CONFIG_NAME)
    is_export = any((folder / name).exists() for name in markers)
    if folder.exists() and not is_export and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("folder", str(folder), "it holds something other than an exported model: choose another one.")
    with replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary
