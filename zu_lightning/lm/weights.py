"""Weights that no model can have been trained to, refused before anything is computed with them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import InputError


def check_finite(lm: EditableLM, parameter: str = "model_name_or_path") -> None:
    """Refuse a model some of whose weights are NaN or infinite; weights that are offloaded are not read.

    Args:
        lm: The model.
        parameter: What the caller calls the place that it was loaded from, for messages.

    Raises:
        InputError: See above.
    """
    found = next((name for name, weight in _weights_here(lm.model) if not _is_finite(weight)), None)
    if found is not None:
        raise _not_finite(lm, found, parameter)


def check_projections(lm: EditableLM, layers: Sequence[int]) -> None:
    """Refuse layers whose output projections cannot be edited, wherever their weights are.

    Raises:
        InputError: A weight holds NaN or infinite values, or nothing but zeros.
    """
    for layer in layers:
        weight = lm.weight(layer)
        if not _is_finite(weight):
            raise _not_finite(lm, lm.weight_name(layer), "model_name_or_path")
        if not weight.any():
            remedy = (
                f"the output projection of layer {layer} holds nothing but zeros, so that no fact can be in it: choose "
                "other layers, or a model that is complete."
            )
            raise InputError("layers", list(layers), remedy)


def _weights_here(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        is_wide = parameter.is_floating_point() and torch.finfo(parameter.dtype).bits >= 16  # what can be compared
        if is_wide and not parameter.is_meta and parameter.numel():
            yield name, parameter.detach()


def _is_finite(weight: Tensor) -> bool:
    """Whether all values are finite; NaN is the least and the largest value of a tensor that holds one."""
    return bool(torch.stack(torch.aminmax(weight)).isfinite().all())


def _not_finite(lm: EditableLM, name: str, parameter: str) -> InputError:
    remedy = f"its weight {name} holds NaN or infinite values (a damaged file, or training that diverged): use another."
    return InputError(parameter, lm.name_or_path, remedy)
