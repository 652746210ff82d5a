"""Fingerprint of the loaded weights, whatever file they came from."""

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
"""Name of the digest of all weights but the output projections."""

SAMPLE = 256
"""Number of values of each other weight in a digest."""


def digests_of(lm: EditableLM, layers: Iterable[int]) -> dict[str, str]:
    """Digests of some output projections (every entry), and of all weights but output projections (a sample).

    They are the same in every precision that can represent the weights.

    Args:
        lm: The model. If it is spread over devices, only projections are digested.
        layers: Layers of the projections.

    Returns:
        Digests by name, ``layer N`` or ``OTHERS``.
    """
    digests = {name_of(layer): tensor_digest(lm.weight(layer)) for layer in sorted(set(layers))}
    if not lm.is_dispatched:
        projections = {f"{lm.weight_name(layer)}.weight" for layer in range(len(lm.layers))}
        digests[OTHERS] = digest(*_sampled(lm, projections))
    return digests


def check_base(lm: EditableLM, known: Mapping[str, str], parameter: str) -> None:
    """Refuse a model that is not the base model of a project's ledger.

    Args:
        lm: The model, before anything is added to its weights.
        known: Digests of the base model in the ledger; none if it is empty.
        parameter: Name of the parameter that named the model.

    Raises:
        InputError: It has other weights.
    """
    digests = digests_of(lm, layers_in(known)) if known else {}
    for name, value in known.items():
        if digests.get(name, value) != value:
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
    """A digest of every entry of a matrix, the same in every precision that can represent it."""
    return digest(tuple(weight.shape), weight.detach().float().cpu().contiguous().numpy().tobytes())


def weights_digest(lm: EditableLM, layers: Iterable[int] = ()) -> str:
    """A digest of a model in its present state, with its configuration and its precision.

    Args:
        lm: The model. It must not be spread over devices: offloaded weights cannot be read.
        layers: Layers whose output projections are digested in full, where other weights are sampled.
    """
    precisions = [parameter.dtype for parameter in lm.model.parameters()]
    whole = [tensor_digest(lm.weight(layer)) for layer in layers]
    return digest(lm.model.config.to_json_string(), precisions, *_sampled(lm), whole)


def open_cache(folder: Path | None, lm: EditableLM, edited: Iterable[int] = ()) -> Cache:
    """The cache of results that were computed with a model in its present state.

    Args:
        folder: Where the files are; ``None`` for no cache. A model that is spread over devices has none: its weights
            cannot be read for a digest.
        lm: The model.
        edited: Layers whose weights may have been edited; they are digested in full, where other weights are sampled.
    """
    if folder is None or lm.is_dispatched:
        return Cache(None, lm.device)
    return Cache(folder, lm.device, digest(weights_digest(lm, edited), _described(lm.tokenizer)))


def _described(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    # Settings of its last call are not part of the tokenizer.
    lasting = {name: value for name, value in described.items() if name not in ("truncation", "padding")}
    return lasting | {"chat": tokenizer.chat_template, "special": tokenizer.special_tokens_map}


def _sampled(lm: EditableLM, without: Container[str] = ()) -> list[object]:
    """Name, shape, and a sample of the values of every weight, without those of some names."""
    parts: list[object] = []
    for name, parameter in lm.model.named_parameters():
        if name not in without:
            flat = parameter.detach().flatten()
            sample = flat[:: max(1, len(flat) // SAMPLE)].double().cpu().numpy().tobytes()
            parts += [name, tuple(parameter.shape), sample]
    return parts
