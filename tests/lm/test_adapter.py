"""An adapter is the edit in the arithmetic of every server, each written out as its code computes it."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.conftest import update_for
from zu_lightning import EditableLM, apply_update, export_adapter, export_model
from zu_lightning.lm.adapter import VLLM_RANKS, serving_commands, vllm_max_rank

TOKENS = torch.arange(3, 43).reshape(2, 20)
RANKS = {0: 5, 2: 3}
"""Ranks of the updates by layer."""


@pytest.fixture
def adapter(lm: EditableLM, tmp_path: Path) -> Path:
    """An adapter of two layers whose updates have different ranks; ``lm`` is the edited model."""
    export_model(lm, tmp_path / "base")
    updates = {layer: update_for(lm, layer, rank) for layer, rank in RANKS.items()}
    for layer, update in updates.items():
        apply_update(lm, layer, update)
    return export_adapter(lm, updates, tmp_path / "adapter")


def factors(adapter: Path) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For each layer, lora_A (rank x d_in) and lora_B (d_out x rank)."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for name in tensors:
        if ".lora_A." in name:
            yield int(name.split(".layers.")[1].split(".")[0]), tensors[name], tensors[name.replace("lora_A", "lora_B")]


def peft(adapter: Path) -> Tensor:
    """What PEFT makes of base and adapter: logits."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(adapter.parent / "base"), adapter)
    return logits(model)


def vllm(adapter: Path) -> Tensor:
    """PEFTHelper: one scale, alpha / r of the configuration, which B is multiplied by.

    Factors are copied into buffers of the maximum rank, which hold zeros elsewhere (vllm/lora/layers).
    """
    config = json.loads((adapter / "adapter_config.json").read_text())
    rank = vllm_max_rank(config["r"])
    assert rank is not None
    changes = {}
    for layer, a, b in factors(adapter):
        a_buffer, b_buffer = torch.zeros(rank, a.shape[1]), torch.zeros(b.shape[0], rank)
        a_buffer[: len(a)], b_buffer[:, : b.shape[1]] = a, b * config["lora_alpha"] / config["r"]
        changes[layer] = b_buffer @ a_buffer
    return with_changes(adapter, changes)


def sglang(adapter: Path) -> Tensor:
    """LoRAConfig and LoRAMemoryPool: one rank and one scale; a tensor of another rank fails an assertion."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    changes = {}
    for layer, a, b in factors(adapter):
        assert a.shape[0] == b.shape[1] == config["r"], "LoRA buffer shape does not match weight shape"
        changes[layer] = (b * scaling) @ a
    return with_changes(adapter, changes)


def llama_cpp(adapter: Path) -> Tensor:
    """llama_adapter_lora_weight::get_scale: alpha of the file divided by the rank of the tensor."""
    alpha = json.loads((adapter / "adapter_config.json").read_text())["lora_alpha"]
    return with_changes(adapter, {layer: alpha / b.shape[1] * b @ a for layer, a, b in factors(adapter)})


def with_changes(adapter: Path, changes: dict[int, Tensor]) -> Tensor:
    """Logits of the base with something added to its output projections."""
    base = EditableLM.from_pretrained(adapter.parent / "base")
    for layer, change in changes.items():
        base.weight(layer).data += change
    return logits(base.model)


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(input_ids=TOKENS).logits
    return output


@pytest.mark.parametrize("server", [peft, vllm, sglang, llama_cpp])
def test_it_is_the_edited_model_in_the_arithmetic_of(
    server: Callable[[Path], Tensor], lm: EditableLM, adapter: Path
) -> None:
    expected = logits(lm.model)
    assert (logits(EditableLM.from_pretrained(adapter.parent / "base").model) - expected).abs().max() > 1e-2
    assert (server(adapter) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("server", [sglang, llama_cpp])
def test_ranks_of_their_own_would_be_refused_or_scaled_wrongly(
    server: Callable[[Path], Tensor], lm: EditableLM, adapter: Path
) -> None:
    """What adapters of earlier versions met: without the padding, llama.cpp is silently wrong."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    layer = f"base_model.model.{lm.weight_name(2)}"
    for name, rows in ((f"{layer}.lora_A.weight", tensors[f"{layer}.lora_A.weight"][: RANKS[2]]),
                       (f"{layer}.lora_B.weight", tensors[f"{layer}.lora_B.weight"][:, : RANKS[2]])):  # fmt: skip
        tensors[name] = rows.contiguous()
    save_file(tensors, adapter / "adapter_model.safetensors")
    if server is sglang:
        with pytest.raises(AssertionError, match="does not match"):
            server(adapter)
    else:
        assert (server(adapter) - logits(lm.model)).abs().max() > 1e-2


def test_vllm_gets_the_lowest_maximum_that_it_knows() -> None:
    assert {rank: vllm_max_rank(rank) for rank in (1, 8, 9, 300, 512)} == {1: 8, 8: 8, 9: 16, 300: 320, 512: 512}
    assert vllm_max_rank(VLLM_RANKS[-1] + 1) is None


def test_commands_name_base_adapter_and_rank() -> None:
    commands = serving_commands("org/model", "out puts/adapter", 20)
    words = shlex.split(commands["vLLM"])
    assert words[:3] == ["vllm", "serve", "org/model"]
    assert words[words.index("--lora-modules") + 1] == "edited=out puts/adapter"
    assert words[words.index("--max-lora-rank") + 1] == "32"
    assert "edited=out puts/adapter" in shlex.split(commands["SGLang"])
    assert "out puts/adapter" in shlex.split(commands["llama.cpp"])
    assert set(serving_commands("org/model", "adapter", 513)) == {"SGLang", "llama.cpp"}
