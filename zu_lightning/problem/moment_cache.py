"""Second moments on disk, recognized by the weights and the text that they were computed from."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zu_lightning.distributed import process, summed
from zu_lightning.facts.texts import RetainText
from zu_lightning.files import digest, replacing
from zu_lightning.lm.editable import EditableLM

log = logging.getLogger(__name__)


class MomentCache:
    """A folder of second moments, one file per layer; several processes may use it at once.

    Args:
        folder: Where the files are.
        lm: The model whose keys they belong to.
        text: The retain text, with how it is read.
    """

    def __init__(self, folder: Path, lm: EditableLM, text: RetainText) -> None:
        reading = text.reading
        limits = (min(reading.max_length, lm.context_length), reading.batch_tokens, reading.corpus_tokens)
        self.folder = folder
        self.key = digest(weights_digest(lm.model), _described(lm.tokenizer), limits, *text.documents)

    def file(self, layer: int) -> Path:
        """The file of a layer's moment."""
        return self.folder / f"moments-{self.key}-layer{layer}.safetensors"

    def partial_file(self, layers: Sequence[int]) -> Path:
        """Where this process keeps the sums of an unfinished pass for these layers."""
        rank, count = process()
        return self.folder / f"partial-{digest(self.key, tuple(layers), count)}-{rank}.safetensors"

    def read(self, layers: Sequence[int], device: torch.device) -> dict[int, Tensor]:
        """The moments of those layers that every process has found."""
        found = {layer: read_tensors(self.file(layer), device) for layer in layers}
        here = torch.tensor([found[layer] is not None for layer in layers], device=device).long()
        everywhere = summed(here)[0] == process()[1]
        return {
            layer: state["moment"]
            for (layer, state), is_there in zip(found.items(), everywhere.tolist(), strict=True)
            if state and is_there
        }

    def write(self, moments: Mapping[int, Tensor]) -> None:
        """Keep moments, from the first process."""
        if process()[0] == 0:
            for layer, moment in moments.items():
                write_tensors(self.file(layer), {"moment": moment})


def weights_digest(model: PreTrainedModel) -> str:
    """A digest of some values of every parameter, which other weights of the same name would not have.

    The model must not be offloaded: weights that are elsewhere cannot be looked at.
    """
    parts: list[object] = [model.config.to_json_string()]
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, len(flat) // 256)].double().cpu().numpy().tobytes()
        parts += [name, tuple(parameter.shape), parameter.dtype, sample]
    return digest(*parts)


def read_tensors(file: Path, device: torch.device) -> dict[str, Tensor] | None:
    """What was written; ``None`` if nothing was, or nothing that can be read."""
    try:
        return load_file(file, device=str(device))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("second moments: %s cannot be read (%s) and is computed again", file, error)
        return None


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file that a run can do without: if that fails, a warning says so."""
    try:
        with replacing(file) as temporary:
            save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
    except (OSError, SafetensorError) as error:
        log.warning("second moments: %s cannot be written (%s)", file, error)


def _described(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    # How it was last called is not part of what it is.
    return {name: value for name, value in described.items() if name not in ("truncation", "padding")}
