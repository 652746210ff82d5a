"""Where decoders have their layers, attention, and MLP output projections."""

from collections.abc import Sequence
from typing import cast

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zu_lightning.runtime.errors import InputError

PROJECTION_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out")
"""Names of an MLP's output projection: Llama, Qwen, Mistral, Gemma, Phi-3; GPT-2; GPT-NeoX; OPT; GPT-J."""

ATTENTION_NAMES = ("self_attn", "attn", "attention")
"""Names of a layer's attention: Llama, Qwen, Mistral, Gemma, OLMo, Phi-3, OPT; GPT-2, GPT-J; GPT-NeoX."""


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, lowest first.

    Raises:
        InputError: No list of modules has as many layers as the configuration says.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError("model", type(model).__name__, f"no list of {count} decoder layers was found: use a decoder.")


def output_projection(layer: nn.Module, model: PreTrainedModel) -> nn.Module:
    """The output projection of a decoder layer's MLP.

    Raises:
        InputError: The layer has none, or has experts.
    """
    width = model.config.get_text_config().hidden_size
    name: str
    module: nn.Module
    for name, module in reversed(list(layer.named_modules())):
        if name.split(".")[-1] not in PROJECTION_NAMES or "attn" in name or "attention" in name or "expert" in name:
            continue
        outputs = module.nf if isinstance(module, Conv1D) else getattr(module, "out_features", None)
        if outputs == width:
            return module
    raise InputError(
        "model", type(model).__name__, "its layers have no dense MLP output projection (looked for "
        f"{', '.join(PROJECTION_NAMES)} with {width} outputs; experts of a mixture are not edited): use a dense one.",
    )  # fmt: skip


def enclosing_mlp(model: PreTrainedModel, projection: nn.Module, layer: nn.Module) -> nn.Module | None:
    """The MLP that a projection belongs to, or ``None`` if it is part of the layer itself (OPT)."""
    mlp = model.get_submodule(name_of(model, projection).rpartition(".")[0])
    return None if mlp is layer else mlp


def mlp_module(model: PreTrainedModel, projection: nn.Module, layer: nn.Module) -> nn.Module:
    """The module that returns an MLP's output: the MLP, or its output projection where it has no module (OPT)."""
    return enclosing_mlp(model, projection, layer) or projection


def attention(layer: nn.Module, model: PreTrainedModel) -> nn.Module:
    """The attention of a decoder layer.

    Raises:
        InputError: The layer has none of the known names.
    """
    for name, module in layer.named_children():
        if name in ATTENTION_NAMES:
            return module
    remedy = f"its layers have no attention (looked for {', '.join(ATTENTION_NAMES)}): use one that has."
    raise InputError("model", type(model).__name__, remedy)


def name_of(model: nn.Module, module: nn.Module) -> str:
    """The name of a module in ``model.named_modules()``."""
    return next(str(name) for name, candidate in model.named_modules() if candidate is module)


def adapter_around(model: nn.Module, module: nn.Module) -> nn.Module:
    """The PEFT adapter that wraps a module; without one the module itself."""
    return next((other for other in model.modules() if getattr(other, "base_layer", None) is module), module)


def normalizes_mlp_output(layer: nn.Module) -> bool:
    """Whether the MLP's output is normalized before it is added to the residual stream (Gemma 2 and 3, OLMo 2)."""
    return hasattr(layer, "post_feedforward_layernorm")


def output_head(model: PreTrainedModel) -> nn.Module:
    """The module that turns hidden states into logits, tied to the embeddings or not."""
    return cast("nn.Module", model.get_output_embeddings())  # type: ignore[no-untyped-call]


def check_layers(layers: Sequence[int], count: int) -> None:
    """Refuse layers that do not exist, are named twice, or are out of order (the lowest is edited first).

    Args:
        layers: Indices from 0.
        count: Number of layers of the model.

    Raises:
        InputError: A layer does not exist, or they are not in strictly increasing order.
    """
    if not layers:
        raise InputError("layers", [], f"name at least one of 0..{count - 1}.")
    missing = [layer for layer in layers if not 0 <= layer < count]
    if missing:
        raise InputError("layers", list(layers), f"layers {missing} do not exist; the model has 0..{count - 1}.")
    if list(layers) != sorted(set(layers)):
        raise InputError("layers", list(layers), "name each layer once, in increasing order.")
