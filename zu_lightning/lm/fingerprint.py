"""Digests by which the weights of a model are recognized, whatever file they came from."""

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.cache import Cache
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest

OTHERS = "other weights"
"""Name of all weights but the output projections."""

SAMPLE = 256
"""Number of values of each other weight that count."""


def digests_of(lm: EditableLM, layers: Iterable[int]) -> dict[str, str]:
    """A digest of every entry of some output projections, and of a sample of all weights that are no such projection.

    They are the same in every precision that can hold the weights.

    Args:
        lm: The model. If it is spread over devices, only projections are looked at.
        layers: Layers of the projections.

    Returns:
        By name, ``layer N`` or ``OTHERS``.
    """
    found = {name_of(layer): tensor_digest(lm.weight(layer)) for layer in sorted(set(layers))}
    if not lm.is_dispatched:
        projections = {f"{lm.weight_name(layer)}.weight" for layer in range(len(lm.layers))}
        found[OTHERS] = digest(*_sampled(lm, projections))
    return found


def check_base(lm: EditableLM, known: Mapping[str, str], parameter: str) -> None:
    """Refuse a model that is not the one with which the ledger of a project began.

    Args:
        lm: The model, before anything is added to its weights.
        known: Digests of the base model, as the ledger has them; none if it is empty.
        parameter: Name of the parameter that named the model.

    Raises:
        InputError: It has other weights.
    """
    here = digests_of(lm, layers_in(known)) if known else {}
    for name, value in known.items():
        if here.get(name, value) != value:
            remedy = (
                f"its weights ({name}) are not those with which the ledger of the project began: give the base model, "
                "without any request, that the project has had from the start."
            )
            raise InputError(parameter, lm.name_or_path, remedy)


def name_of(layer: int) -> str:
    """Name of a layer's output projection among the digests."""
    return f"layer {layer}"


def layers_in(digests: Mapping[str, str]) -> list[int]:
    """The layers whose projections are among the digests."""
    return [int(name.split()[1]) for name in digests if name != OTHERS]


def tensor_digest(weight: torch.Tensor) -> str:
    """A digest of every entry of a matrix, the same in every precision that can hold it."""
    return digest(tuple(weight.shape), weight.detach().float().cpu().contiguous().numpy().tobytes())


def weights_digest(lm: EditableLM, layers: Iterable[int] = ()) -> str:
    """A digest of a model as it is, its configuration and its precision included, which no other model would have.

    Args:
        lm: The model. It must not be spread over devices: weights that are elsewhere cannot be looked at.
        layers: Layers of which every entry of the output projection counts, where of other weights a sample does.
    """
    precisions = [parameter.dtype for parameter in lm.model.parameters()]
    whole = [tensor_digest(lm.weight(layer)) for layer in layers]
    return digest(lm.model.config.to_json_string(), precisions, *_sampled(lm), whole)


def open_cache(folder: Path | None, lm: EditableLM, edited: Iterable[int] = ()) -> Cache:
    """The cache of what is computed with a model in its present state.

    Args:
        folder: Where the files are; ``None`` to compute everything and keep nothing. A model that is spread over
            devices has no cache: its weights cannot be read to recognize them.
        lm: The model.
        edited: Layers whose weights may have been edited: each of their entries counts, where of other weights a sample
            does.
    """
    if folder is None or lm.is_dispatched:
        return Cache(None, lm.device)
    return Cache(folder, lm.device, digest(weights_digest(lm, edited), _described(lm.tokenizer)))


def _described(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    # Settings of its last call are not part of what it is.
    own = {name: value for name, value in described.items() if name not in ("truncation", "padding")}
    return own | {"chat": tokenizer.chat_template, "special": tokenizer.special_tokens_map}


def _sampled(lm: EditableLM, without: Container[str] = ()) -> list[object]:
    """Name, shape, and some values of every weight but those with some names."""
    parts: list[object] = []
    for name, parameter in lm.model.named_parameters():
        if name not in without:
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLE)].double().cpu().numpy().tobytes()
            parts += [name, tuple(parameter.shape), sample]
    return parts
