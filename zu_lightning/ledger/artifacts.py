"""Files that still hold what was to be forgotten: texts, unedited weights, and hidden states."""

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
from zu_lightning.ledger.kept import FACTS, KEYS, LEDGER, UPDATE
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.ledger.recording import CONFIGURATION
from zu_lightning.lm.adapter import WEIGHTS_NAME as ADAPTER
from zu_lightning.lm.fingerprint import layers_in, name_of, tensor_digest

HIDDEN_STATES = ("keys-", "outputs-", "targets-", "values-", "varied_keys-")
"""Beginnings of the names of files in a cache that were computed from the texts of facts."""

OF_CACHE = (".npy", ".safetensors", ".partial")
"""Endings of the names of files in a cache; the last one is left by a process that was killed while it wrote."""

WINDOW = 3
"""Number of lines within which a subject and an answer belong together."""

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Remains:
    """What a file still holds.

    Attributes:
        path: The file.
        holds: What it holds, in words.
        needed: For what it is needed, in words; empty if it can go.
    """

    path: Path
    holds: Sequence[str]
    needed: str = ""


def remains(ledger: Ledger, folders: Sequence[Path], facts: Sequence[Fact] = ()) -> Iterator[Remains]:
    """Every file that still holds something, in order.

    A text is found if neighboring lines of a file hold both a fact's answer and its subject (its prompt if it names
    none), as they are or as JSON or HTML write them, or if a file that is no text holds its prompt. Weights are
    recognized by their digests, in whatever file they are; those that were rounded on the way are not.

    Args:
        ledger: Of the project.
        folders: Where to look, subfolders included.
        facts: Forgotten facts whose texts the project did not keep.
    """
    requests = [entry for entry in ledger.entries if isinstance(entry, RequestEntry)]
    own = (fact for entry in requests for fact in ledger.facts_of(entry.number))
    # A request that was solved again has the same facts under two numbers.
    known = {(fact.prompt, fact.target): fact for fact in (*facts, *own)}.values()
    texts = [tuple(map(_spellings, (fact.subject or fact.prompt, fact.target, fact.prompt))) for fact in known]
    weights = _OldWeights(ledger)
    for path in sorted({path for folder in folders for path in folder.rglob("*") if path.is_file()}):
        holds = [*_texts_in(path, texts), *weights.held_by(path), *_hidden_states_in(path)]
        if holds:
            yield Remains(path, holds, _needed(ledger, path))


def _spellings(text: str) -> set[bytes]:
    """A text as files may spell it."""
    return {one.encode() for one in (text, json.dumps(text)[1:-1], html.escape(text))}


def _texts_in(path: Path, texts: Sequence[tuple[set[bytes], ...]]) -> list[str]:
    content = path.read_bytes()
    lines = None if b"\0" in content else content.splitlines()
    windows = [b"\n".join(lines[i : i + WINDOW]) for i in range(len(lines))] if lines else []

    def is_in(text: tuple[set[bytes], ...]) -> bool:
        who, answer, prompt = text
        if lines is None or not (_any(who, content) and _any(answer, content)):
            return lines is None and _any(prompt, content)
        return any(_any(who, some) and _any(answer, some) for some in windows)

    count = sum(map(is_in, texts))
    return [f"text of {count} forgotten fact{'' if count == 1 else 's'}"] if count else []


def _any(spellings: set[bytes], content: bytes) -> bool:
    return any(one in content for one in spellings)


def _hidden_states_in(path: Path) -> list[str]:
    if path.name == KEYS or (path.suffix in OF_CACHE and path.name.lstrip(".").startswith(HIDDEN_STATES)):
        return ["hidden states of forgotten facts"]
    if path.name in (UPDATE, ADAPTER):
        what = "an update" if path.name == UPDATE else "an adapter"
        return [f"{what}: subtracted from the edited weights, it brings its facts back"]
    return ["state of a run that has not ended"] if path.suffix == ".ckpt" else []


class _OldWeights:
    """Recognizes weights that some request has edited since."""

    def __init__(self, ledger: Ledger) -> None:
        layers = layers_in(ledger.base)
        states = [(0, ledger.base), *((entry.number, entry.weights["after"]) for entry in ledger.entries)]
        self.now = ledger.base | dict(states[-1][1])
        names = {layer: name_of(layer) for layer in layers}
        self.line = {
            state[name]: (layer, line) for line, state in states for layer, name in names.items() if name in state
        }
        """For each digest its layer, and the last line after which that was its weight."""

    def held_by(self, path: Path) -> list[str]:
        """What a file holds of old weights."""
        found: list[str] = []
        for tensor in _tensors_in(path):
            for one in (tensor, tensor.mT):
                value = tensor_digest(one)
                if value in self.line and value not in self.now.values():
                    layer, line = self.line[value]
                    state = f"as it was after line {line}" if line else "unedited"
                    found.append(f"weight of layer {layer}, {state}")
        return found


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
    if isinstance(content, Tensor) and content.dim() == 2:
        yield content
    elif isinstance(content, dict | list | tuple):
        for one in content.values() if isinstance(content, dict) else content:
            yield from _inside(one)


def _needed(ledger: Ledger, path: Path) -> str:
    """For what a file is needed; empty if it can go."""
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
