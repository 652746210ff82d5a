"""LoRA adapters: factors of one rank for all layers, the commands that serve them, and adapters written by others.

The limits of each server were read from its code; see docs/how-to/serving.md.
"""

import json
import logging
import shlex
from pathlib import Path

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from torch.nn.functional import pad

from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
CUT_FROM = "cut_from_rank"
"""Key in the metadata of an adapter's weights: the rank before it was truncated."""

NAME = "default"
"""PEFT's name for the only adapter of a model."""

SERVED_NAME = "edited"
"""Name of the edited model in commands; the server offers the base model by its own name."""

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for ``--max-lora-rank`` (``MaxLoRARanks`` in vllm/config/lora.py; newer ones also 1)."""


def balanced(update: LowRankUpdate) -> LowRankUpdate:
    """The same update with orthogonal factors of equal size, the largest first, and no superfluous rank."""
    left, right_factor = torch.linalg.qr(update.left.double())
    right, left_factor = torch.linalg.qr(update.right.double().mT)
    u, s, v = torch.linalg.svd(right_factor @ left_factor.mT, full_matrices=False)
    is_nonzero = s > torch.finfo(s.dtype).eps * len(s) * s.max()
    is_nonzero[0] = True
    root = s[is_nonzero].sqrt()
    return LowRankUpdate(left @ u[:, is_nonzero] * root, root[:, None] * (v[is_nonzero] @ right.mT))


def cut(update: LowRankUpdate, max_rank: int | None) -> LowRankUpdate:
    """The closest update of at most this rank (a truncated SVD), from a balanced one."""
    return LowRankUpdate(update.left[:, :max_rank], update.right[:max_rank])


def padded(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    """The same update with factors of a higher rank, padded by zeros."""
    missing = rank - update.rank
    return LowRankUpdate(pad(update.left, (0, missing)), pad(update.right, (0, 0, 0, missing)))


def adapter_rank(folder: Path) -> int | None:
    """The rank of the adapter in a folder; ``None`` if there is no adapter."""
    config = folder / CONFIG_NAME
    return int(json.loads(config.read_text(encoding="utf-8"))["r"]) if config.exists() else None


def cut_from(folder: Path) -> int | None:
    """The rank before the adapter in a folder was truncated; ``None`` if it was not."""
    with safe_open(folder / WEIGHTS_NAME, "pt") as file:
        rank = (file.metadata() or {}).get(CUT_FROM)
    return None if rank is None else int(rank)


def vllm_max_rank(rank: int) -> int | None:
    """The lowest ``--max-lora-rank`` of vLLM that accepts an adapter of this rank; ``None`` if none does."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def serving_commands(base: str, adapter: str, rank: int) -> dict[str, str]:
    """Shell commands that serve a base model with an adapter, by server; without vLLM if the rank is too high for it.

    There are none if the base is a GGUF file: the adapter belongs to its dequantized weights.

    Args:
        base: Hub id or directory of the unedited model.
        adapter: Directory of the adapter.
        rank: Its rank.
    """
    if base.endswith(".gguf"):
        return {}
    model, folder = shlex.quote(base), shlex.quote(adapter)
    module = shlex.quote(f"{SERVED_NAME}={adapter}")
    commands = {
        "SGLang": f"python -m sglang.launch_server --model-path {model} --lora-paths {module} --max-lora-rank {rank}",
        "llama.cpp": f"python convert_hf_to_gguf.py {model} --outfile base.gguf && "
        f"python convert_lora_to_gguf.py {folder} --base {model} --outfile {SERVED_NAME}.gguf && "
        f"llama-server --model base.gguf --lora {SERVED_NAME}.gguf",
    }
    allowed = vllm_max_rank(rank)
    if allowed is None:
        return commands
    vllm = f"vllm serve {model} --enable-lora --lora-modules {module} --max-lora-rank {allowed}"
    return {"vLLM": vllm} | commands


def read_adapter(lm: EditableLM, folder: str | Path) -> dict[int, LowRankUpdate]:
    """The updates of a LoRA adapter by layer, scaled as PEFT scales them; float64.

    Args:
        lm: The base model; it is not changed.
        folder: The adapter, written by :func:`zu_lightning.export_adapter` or by anything else.

    Raises:
        InputError: It is not a LoRA adapter, does not fit the model, or changes other weights, too.
    """
    layers = {lm.weight_name(layer): layer for layer in range(len(lm.layers))}
    if not (Path(folder) / CONFIG_NAME).is_file():  # PEFT would ask the hub
        raise InputError("adapters", str(folder), f"it holds no {CONFIG_NAME}: name the folder of an adapter.")
    try:
        config = PeftConfig.from_pretrained(str(folder))
        model = PeftModel.from_pretrained(lm.model, str(folder), config=config)
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        remedy = f"it cannot be read as an adapter of {lm.name_or_path} ({str(error).splitlines()[0]})."
        raise InputError("adapters", str(folder), remedy) from error
    if config.base_model_name_or_path not in (None, "", lm.name_or_path):
        log.warning(
            "%s was made for %s, not for %s: if these weights differ, the sum is meaningless.",
            folder, config.base_model_name_or_path, lm.name_or_path,
        )  # fmt: skip
    updates: dict[int, LowRankUpdate] = {}
    others: list[str] = []
    for name, module in lm.model.named_modules():
        if isinstance(module, LoraLayer) and NAME in module.scaling:
            if name in layers:
                updates[layers[name]] = _factors(module)
            else:
                others.append(name)
    model.unload()
    if others or not updates:
        what = f"it changes {', '.join(others[:3])}, ..." if others else "it changes no weights"
        raise InputError("adapters", str(folder), f"{what}: only output projections of MLPs can be composed.")
    return updates


def _factors(module: LoraLayer) -> LowRankUpdate:
    left, right = (getattr(module, name)[NAME].weight.detach().double() for name in ("lora_B", "lora_A"))
    return LowRankUpdate(left * torch.as_tensor(module.scaling[NAME], dtype=torch.float64), right)
