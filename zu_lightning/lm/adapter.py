"""LoRA adapters as servers take them: one rank for all layers, and the commands that serve them.

What each server takes was read from its code, and is told in docs/how-to/serving.md.
"""

import json
import shlex
from pathlib import Path

import torch
from torch.nn.functional import pad

from zu_lightning.solvers import LowRankUpdate

CONFIG_NAME = "adapter_config.json"

SERVED_NAME = "edited"
"""What the edited model is called in commands; the server keeps the base under the base's name."""

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` of vLLM may be (``MaxLoRARanks`` in vllm/config/lora.py; newer versions also take 1)."""


def balanced(update: LowRankUpdate, max_rank: int | None = None) -> LowRankUpdate:
    """The same update with orthogonal factors of equal size and no superfluous rank.

    Args:
        update: Factors d_out x rank and rank x d_in.
        max_rank: If the rank is higher, the closest update of this rank (by a truncated SVD) is returned instead.
    """
    left, right_factor = torch.linalg.qr(update.left.double())
    right, left_factor = torch.linalg.qr(update.right.double().mT)
    u, s, v = torch.linalg.svd(right_factor @ left_factor.mT, full_matrices=False)
    kept = s > torch.finfo(s.dtype).eps * len(s) * s.max()
    kept[0] = True
    if max_rank is not None:
        kept[max_rank:] = False  # singular values descend
    root = s[kept].sqrt()
    return LowRankUpdate(left @ u[:, kept] * root, root[:, None] * (v[kept] @ right.mT))


def padded(update: LowRankUpdate, rank: int) -> LowRankUpdate:
    """The same update with factors of a higher rank: what is added to them is zero."""
    missing = rank - update.rank
    return LowRankUpdate(pad(update.left, (0, missing)), pad(update.right, (0, 0, 0, missing)))


def adapter_rank(folder: Path) -> int | None:
    """The rank of the adapter in a folder; ``None`` if there is no adapter."""
    config = folder / CONFIG_NAME
    return int(json.loads(config.read_text(encoding="utf-8"))["r"]) if config.exists() else None


def vllm_max_rank(rank: int) -> int | None:
    """The lowest ``--max-lora-rank`` of vLLM that takes an adapter of this rank; ``None`` if none does."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def serving_commands(base: str, adapter: str, rank: int) -> dict[str, str]:
    """Shell commands that serve a base model with an adapter, by server; without vLLM if the rank is too high for it.

    Args:
        base: Hub id or directory of the unedited model.
        adapter: Directory of the adapter.
        rank: Its rank.
    """
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
