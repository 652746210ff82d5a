"""Parameters of an output projection on a device, in main memory, or on disk."""

from typing import Any

import torch
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def places(model: PreTrainedModel) -> set[int | str]:
    """The devices over which accelerate has spread a model, ``disk`` included; empty if it has not."""
    return set(getattr(model, "hf_device_map", {}).values())


def is_dispatched(model: PreTrainedModel) -> bool:
    """Whether accelerate has spread the model over several devices (``device_map``)."""
    return len(places(model)) > 1 or "disk" in places(model)


def input_device(model: PreTrainedModel) -> torch.device:
    """Device of token ids."""
    if is_dispatched(model):
        accelerators = {place for place in places(model) if place not in ("cpu", "disk")}
        return torch.device(min(accelerators, key=str, default="cpu"))
    return torch.device(model.device)


def read_parameter(projection: nn.Module, name: str) -> Tensor:
    """A parameter of a projection; a weight is d_out x d_in, even if the module stores it transposed."""
    stored: Tensor = projection.get_parameter(name)
    value: Tensor = _weights_map(projection)[name] if stored.is_meta else stored
    return value.mT if _is_transposed(projection, name) else value


def write_weight(projection: nn.Module, weight: Tensor) -> None:
    """Replace a projection's weight, d_out x d_in, rounded to the dtype it is stored in."""
    weight = weight.mT if _is_transposed(projection, "weight") else weight
    stored = projection.get_parameter("weight")
    if not stored.is_meta:
        with torch.no_grad():
            stored.copy_(weight)
        return
    weights, name = _weights_map(projection), "weight"
    while isinstance(weights, PrefixedDataset):
        weights, name = weights.dataset, weights.prefix + name
    # From now on the weight is in main memory, even if it was on disk.
    state = weights.state_dict if isinstance(weights, OffloadedWeightsLoader) else weights
    state[name] = weight.detach().to("cpu", stored.dtype).contiguous()


def _is_transposed(projection: nn.Module, name: str) -> bool:
    return isinstance(projection, Conv1D) and name == "weight"


def _weights_map(projection: nn.Module) -> Any:
    """Accelerate's map of a module's offloaded weights."""
    return projection._hf_hook.weights_map  # type: ignore[union-attr]
