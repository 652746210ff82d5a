"""Second moments of retain keys: one pass over the corpus for all layers, cached, and continued where it was killed."""

import hashlib
import json
import logging
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from zu_lightning.distributed import own_share, process, summed
from zu_lightning.errors import InputError
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import TokenizedText, collate, tokenize
from zu_lightning.problem.keys import batches

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0
"""Seconds of work that a killed run loses at most, and a batch."""

BLOCKS = 4
"""Into so many the columns of a symmetric product are cut, of which only those on and above the diagonal are computed:
5/8 of the work."""


def second_moments(
    lm: EditableLM,
    texts: Iterable[str],
    layers: Sequence[int],
    *,
    max_length: int = 512,
    max_tokens: int = 2048,
    token_budget: int | None = None,
    cache: Path | None = None,
    progress: bool = False,
) -> dict[int, Tensor]:
    """Uncentred second moments of the keys of several layers, in one pass that ends at the highest of them.

    Args:
        lm: The model.
        texts: Retain text, one document each.
        layers: Indices of the layers.
        max_length: Tokens of a document that are read; never more than the model's context.
        max_tokens: Most tokens a batch, padding included.
        token_budget: Tokens after which the corpus is read no further; all of it by default.
        cache: Folder in which moments are looked for and kept, by weights, text and the other arguments. Several
            processes may use it at once.
        progress: Whether to show a progress bar.

    Returns:
        For each layer C, d_in x d_in, float64: the mean of k k^T over all tokens of the texts.

    Raises:
        InputError: There is no text.
    """
    max_length = min(max_length, lm.context_length)
    texts = list(texts)
    if not texts:
        raise InputError(
            "there is no retain text: data.corpus must hold at least one line that names no forgotten one."
        )
    if cache is None:
        documents = _documents(lm, texts, max_length, token_budget)
        return _one_pass(lm, documents, layers, max_tokens, None, progress=progress)
    cache.mkdir(parents=True, exist_ok=True)
    given = _digest(*texts, _described(lm.tokenizer), (max_length, max_tokens, token_budget))
    given = _digest(lm.identity, given)
    files = {layer: cache / f"moments-{given}-layer{layer}.safetensors" for layer in layers}
    found = {layer: _read(file, lm.device) for layer, file in files.items()}
    # Only what all processes have found spares them all the pass.
    here = torch.tensor([found[layer] is not None for layer in layers], device=lm.device).long()
    everywhere = summed(here)[0] == process()[1]
    missing = [layer for layer, is_there in zip(layers, everywhere.tolist(), strict=True) if not is_there]
    if missing:
        documents = _documents(lm, texts, max_length, token_budget)
        name = "-".join(map(str, (_digest(given, tuple(missing)), *process())))
        partial = cache / f"partial-{name}.safetensors"
        for layer, moment in _one_pass(lm, documents, missing, max_tokens, partial, progress=progress).items():
            found[layer] = whole = {"moment": moment}
            if process()[0] == 0:
                _write(files[layer], whole)
        partial.unlink(missing_ok=True)
    else:
        log.info("second moments: read from %s", cache)
    return {layer: state["moment"] for layer, state in found.items() if state}


def _documents(lm: EditableLM, texts: Sequence[str], max_length: int, token_budget: int | None) -> list[TokenizedText]:
    documents, left = [], token_budget
    for text in texts:
        if left is not None and left <= 0:
            break
        documents.append(tokenize(lm.tokenizer, text, max_length=max_length if left is None else min(max_length, left)))
        left = None if left is None else left - len(documents[-1].ids)
    return documents


def _one_pass(
    lm: EditableLM,
    documents: Sequence[TokenizedText],
    layers: Sequence[int],
    max_tokens: int,
    partial: Path | None,
    *,
    progress: bool,
) -> dict[int, Tensor]:
    """The moments, from the sums in ``partial`` on where a killed run has left some; each process has a file."""
    widths = {layer: lm.weight(layer).shape[1] for layer in layers}
    sums = {layer: torch.zeros(d_in, d_in, dtype=torch.float64, device=lm.device) for layer, d_in in widths.items()}
    done = 0
    state = _read(partial, lm.device) if partial else None
    if state:
        done, sums = int(state["done"]), {layer: state[str(layer)] for layer in layers}
        log.info("second moments: going on after %d batches", done)
    shares = list(own_share(batches(documents, max_tokens)))
    sizes = [sum(len(documents[i].ids) for i in indices) for indices in shares]
    saved = time.monotonic()
    with tqdm(
        total=sum(sizes), initial=sum(sizes[:done]), desc="Retain keys", unit=" tokens", disable=not progress,
        leave=False,
    ) as bar:  # fmt: skip
        for number in range(done, len(shares)):
            batch = lm.to_device(collate([documents[i] for i in shares[number]], lm.tokenizer))
            real = batch.attention_mask.bool()
            for layer, record in zip(layers, lm.record(batch, [lm.projections[i] for i in layers]), strict=True):
                _add_product(sums[layer], record.input[real].float())
            bar.update(sizes[number])
            if partial and time.monotonic() - saved > SAVE_EVERY:
                state = {str(layer): total for layer, total in sums.items()}
                _write(partial, state | {"done": torch.tensor(number + 1)})
                saved = time.monotonic()
    for total in sums.values():
        total.triu_().add_(total.triu(1).mT)
    summed(*sums.values())
    count = sum(len(document.ids) for document in documents)
    return {layer: total.div_(count) for layer, total in sums.items()}


def _add_product(total: Tensor, keys: Tensor) -> None:
    """Add K^T K to ``total``, d_in x d_in, of which the lower triangle is left to be anything."""
    edges = torch.linspace(0, len(total), BLOCKS + 1).round().int().tolist()
    for start, end in pairwise(edges):
        total[start:end, start:] += keys[:, start:end].mT @ keys[:, start:]


def _described(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    # How it was last called is no part of what it is.
    return {name: value for name, value in described.items() if name not in ("truncation", "padding")}


def _digest(*parts: object) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()[:32]


def _read(file: Path, device: torch.device) -> dict[str, Tensor] | None:
    """What was written; ``None`` where nothing was, or nothing that can be read."""
    try:
        return load_file(file, device=str(device))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("second moments: %s cannot be read (%s) and is computed again", file, error)
        return None


def _write(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file that has its name only when it is complete; a run can do without."""
    temporary = file.with_name(f"{file.name}.{time.monotonic_ns()}-{process()[0]}.tmp")
    try:
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary)
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        log.warning("second moments: %s cannot be written (%s)", file, error)
        temporary.unlink(missing_ok=True)
