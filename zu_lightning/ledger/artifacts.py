"""Residual artifacts: files that still contain forgotten texts, unedited weights, or hidden states."""

import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from zu_lightning.facts.fact import Fact
from zu_lightning.ledger.entries import RequestEntry
from zu_lightning.ledger.files import CONFIGURATION, FACTS, KEYS, LEDGER, UPDATE
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.lm.adapter import WEIGHTS_NAME as ADAPTER
from zu_lightning.lm.fingerprint import layers_in, name_of, tensor_digest

HIDDEN_STATES = ("keys-", "outputs-", "targets-", "values-", "varied_keys-")
"""Prefixes of cache files that are computed from the texts of facts."""

CACHE_SUFFIXES = (".npy", ".safetensors", ".partial")
"""Suffixes of cache files; the last one is left by a process that was killed while writing."""

WINDOW = 3
"""Number of neighboring lines in which a subject and an answer count as the text of a fact."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class ResidualArtifact:
    """A file that still contains something to be forgotten.

    Attributes:
        path: The file.
        holds: Descriptions of its contents.
        needed: Why it is needed; empty if it can be deleted.
    """

    path: Path
    holds: Sequence[str]
    needed: str = ""


def residual_artifacts(
    ledger: Ledger, folders: Sequence[Path], facts: Sequence[Fact] = ()
) -> Iterator[ResidualArtifact]:
    """All residual artifacts in some folders, in order.

    A text is found if neighboring lines of a file contain both a fact's answer and its subject (its prompt if it names
    none), verbatim or as JSON or HTML escape them, or if a binary file contains its prompt. Weights are recognized by
    their digests in any file of tensors, unless they were rounded.

    Args:
        ledger: Ledger of the project.
        folders: Where to search, subfolders included.
        facts: Forgotten facts whose texts the project does not store.
    """
    requests = [entry for entry in ledger.entries if isinstance(entry, RequestEntry)]
    stored = (fact for entry in requests for fact in ledger.facts_of(entry.number))
    # A request that was solved again has the same facts under two numbers.
    unique = {(fact.prompt, fact.target): fact for fact in (*facts, *stored)}.values()
    texts = [tuple(map(_spellings, (fact.subject or fact.prompt, fact.target, fact.prompt))) for fact in unique]
    weights = _OldWeights(ledger)
    for path in sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()}):
        holds = [*_texts_in(path, texts), *weights.held_by(path), *_hidden_states_in(path)]
        if holds:
            yield ResidualArtifact(path, holds, _needed(ledger, path))


def _spellings(text: str) -> set[bytes]:
    """A text verbatim, and as JSON and HTML escape it."""
    return {one.encode() for one in (text, json.dumps(text)[1:-1], html.escape(text))}


def _texts_in(path: Path, texts: Sequence[tuple[set[bytes], ...]]) -> list[str]:
    content = path.read_bytes()
    lines = None if b"\0" in content else content.splitlines()
    windows = [b"\n".join(lines[i : i + WINDOW]) for i in range(len(lines))] if lines else []

    def is_in(text: tuple[set[bytes], ...]) -> bool:
        subject, answer, prompt = text
        if lines is None or not (_any(subject, content) and _any(answer, content)):
            return lines is None and _any(prompt, content)
        return any(_any(subject, window) and _any(answer, window) for window in windows)

    count = sum(map(is_in, texts))
    return [f"text of {count} forgotten fact{'' if count == 1 else 's'}"] if count else []


def _any(spellings: set[bytes], content: bytes) -> bool:
    return any(one in content for one in spellings)


def _hidden_states_in(path: Path) -> list[str]:
    if path.name == KEYS or (path.suffix in CACHE_SUFFIXES and path.name.lstrip(".").startswith(HIDDEN_STATES)):
        return ["hidden states of forgotten facts"]
    if path.name in (UPDATE, ADAPTER):
        kind = "an update" if path.name == UPDATE else "an adapter"
        return [f"{kind}: subtracting it from the edited weights restores its facts"]
    return ["state of an unfinished run"] if path.suffix == ".ckpt" else []


class _OldWeights:
    """Recognizes weights that a request has edited since."""

    def __init__(self, ledger: Ledger) -> None:
        states = [(0, ledger.base), *((entry.number, entry.weights["after"]) for entry in ledger.entries)]
        self.current = {*(ledger.base | dict(states[-1][1])).values()}
        names = {layer: name_of(layer) for layer in layers_in(ledger.base)}
        self.line = {
            state[name]: (layer, line) for line, state in states for layer, name in names.items() if name in state
        }
        """For each digest, its layer and the last line after which the layer had this weight."""

    def held_by(self, path: Path) -> list[str]:
        """Descriptions of the old weights in a file."""
        digests = [tensor_digest(matrix) for tensor in _tensors_in(path) for matrix in (tensor, tensor.mT)]
        old = [self.line[value] for value in digests if value in self.line and value not in self.current]
        return [f"weight of layer {layer}, {f'as it was after line {n}' if n else 'unedited'}" for layer, n in old]


def _tensors_in(path: Path) -> Iterator[Tensor]:
    """All matrices in a file of tensors."""
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                tensors = (file.get_tensor(name) for name in file.keys())  # noqa: SIM118
                yield from (tensor for tensor in tensors if tensor.dim() == 2)
        except SafetensorError:
            return
    elif path.suffix in PICKLES:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # whatever else has this ending
            return
        yield from _inside(content)


def _inside(content: Any) -> Iterator[Tensor]:
    """All matrices in nested containers."""
    if isinstance(content, Tensor) and content.dim() == 2:
        yield content
    elif isinstance(content, dict | list | tuple):
        for item in content.values() if isinstance(content, dict) else content:
            yield from _inside(item)


def _needed(ledger: Ledger, path: Path) -> str:
    """Why a file is needed; empty if it can be deleted."""
    resolved = path.resolve()
    requests = [entry for entry in ledger.entries if isinstance(entry, RequestEntry)]
    if any(Path(entry.model).resolve() == resolved.parent for entry in requests):
        return "the base model, from which requests start"
    if resolved == (ledger.folder / LEDGER).resolve():
        return "the ledger"
    numbers = [entry.number for entry in requests if ledger.folder_of(entry.number).resolve() == resolved.parent]
    if numbers and path.name == FACTS and numbers[0] in ledger.waiting:
        return f"solving request {numbers[0]} again"
    return "later requests" if numbers and path.name in (KEYS, UPDATE, CONFIGURATION) else ""
