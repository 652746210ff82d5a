"""PEFT adapters, read as updates of a model's output projections."""

from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer

from zu_lightning.errors import InputError
from zu_lightning.lm.editable import EditableLM
from zu_lightning.solvers import LowRankUpdate

NAME = "default"
"""PEFT's name for the only adapter of a model."""


def read_adapter(lm: EditableLM, folder: str | Path) -> dict[int, LowRankUpdate]:
    """What a LoRA adapter adds to each output projection, scaled as PEFT scales it; float64.

    Args:
        lm: The base model; it is left as it was.
        folder: The adapter, written by :func:`zu_lightning.export_adapter` or by anything else.

    Raises:
        InputError: It is no LoRA adapter, does not fit the model, or changes other weights, too.
    """
    layers = {lm.weight_name(layer): layer for layer in range(len(lm.layers))}
    try:
        config = PeftConfig.from_pretrained(str(folder))
        model = PeftModel.from_pretrained(lm.model, str(folder), config=config)
    except (OSError, ValueError, RuntimeError) as error:
        remedy = f"it cannot be read as an adapter of {lm.name_or_path} ({str(error).splitlines()[0]})."
        raise InputError("adapters", str(folder), remedy) from error
    found: dict[int, LowRankUpdate] = {}
    others: list[str] = []
    for name, module in lm.model.named_modules():
        if isinstance(module, LoraLayer) and NAME in module.scaling:
            if name in layers:
                found[layers[name]] = _factors(module)
            else:
                others.append(name)
    model.unload()
    if others or not found:
        what = f"it changes {', '.join(others[:3])}, ..." if others else "it changes no weights"
        raise InputError("adapters", str(folder), f"{what}: only output projections of MLPs can be composed.")
    return found


def _factors(module: LoraLayer) -> LowRankUpdate:
    left, right = (getattr(module, name)[NAME].weight.detach().double() for name in ("lora_B", "lora_A"))
    return LowRankUpdate(left * torch.as_tensor(module.scaling[NAME], dtype=torch.float64), right)
