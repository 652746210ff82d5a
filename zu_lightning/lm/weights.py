"""Refuse broken weights before anything is computed with them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import InputError


def check_finite(lm: EditableLM, parameter: str = "model_name_or_path") -> None:
    """Refuse a model with NaN or infinite weights; offloaded weights are not read.

    Args:
        lm: The model.
        parameter: The option that names the model, for messages.

    Raises:
        InputError: A weight holds NaN or infinite values.
    """
    broken = next((name for name, weight in _loaded_weights(lm.model) if not _is_finite(weight)), None)
    if broken is not None:
        raise _not_finite(lm, broken, parameter)


def check_projections(lm: EditableLM, layers: Sequence[int]) -> None:
    """Refuse layers whose output projections cannot be edited, offloaded or not.

    Raises:
        InputError: A weight holds NaN or infinite values, or only zeros.
    """
    for layer in layers:
        weight = lm.weight(layer)
        if not _is_finite(weight):
            raise _not_finite(lm, lm.weight_name(layer), "model_name_or_path")
        if not weight.any():
            remedy = (
                f"the output projection of layer {layer} holds nothing but zeros, so that it stores no fact: choose "
                "other layers, or a complete model."
            )
            raise InputError("layers", list(layers), remedy)


def _loaded_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        is_wide = parameter.is_floating_point() and torch.finfo(parameter.dtype).bits >= 16  # no comparison in 8 bits
        if is_wide and not parameter.is_meta and parameter.numel():
            yield name, parameter.detach()


def _is_finite(weight: Tensor) -> bool:
    """Whether all values are finite; NaN is both the minimum and the maximum of a tensor with NaN."""
    return bool(torch.stack(torch.aminmax(weight)).isfinite().all())


def _not_finite(lm: EditableLM, name: str, parameter: str) -> InputError:
    remedy = f"its weight {name} holds NaN or infinite values (a damaged file, or training that diverged): use another."
    return InputError(parameter, lm.name_or_path, remedy)
