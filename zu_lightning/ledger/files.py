"""Files of a request in a project folder: facts, keys and values, and the update."""

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from zu_lightning.editing.request import PreviousLayer
from zu_lightning.facts.fact import Fact
from zu_lightning.ledger.chain import sync
from zu_lightning.runtime.cache import pack, unpack
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

LEDGER, REQUESTS = "ledger.jsonl", "requests"
"""The ledger, and the folder with a folder for each request."""

FACTS, UPDATE, KEYS = "facts.jsonl", "update.safetensors", "keys.safetensors"
"""Files of a request: its facts, its low-rank factors, and the keys and values that later requests preserve."""

CONFIGURATION = "config.yaml"
"""File of a request: the resolved configuration of its run."""


def fact_digest(fact: Fact, salt: str) -> str:
    """Salted digest of a prompt and its answer."""
    return digest("fact", salt, fact.prompt, fact.target)


def read_salt(folder: Path) -> str:
    """The salt of a project, created at random if there is none."""
    path = folder / "salt"
    if not path.exists():
        if (folder / LEDGER).exists():
            log.warning(
                "%s is missing, and a new salt is created: facts of previous requests are recognized by their ids "
                "only, and not refused under other ids.", path,
            )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f".salt.{os.getpid()}.partial"
        try:
            own.touch(mode=0o600)
            own.write_text(secrets.token_hex(16))
            sync(own)
            with suppress(FileExistsError):  # written by another process meanwhile
                os.link(own, path)
            sync(folder)
        finally:
            own.unlink()
    return path.read_text()


def write_facts(path: Path, facts: Sequence[Fact]) -> None:
    """Write facts as JSON Lines that :func:`zu_lightning.read_facts` can read, too."""
    names = ("id", "prompt", "target", "subject", "relation", "fact_token", "chat", "paraphrases", "answers", "records")
    lines = []
    for fact in facts:
        queries = {
            name: [{"prompt": query.prompt, "target": query.target} for query in getattr(fact, name)]
            for name in ("neighbors", "multi_hop")
        }
        lines.append(json.dumps({name: getattr(fact, name) for name in names} | queries, ensure_ascii=False) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def read_stored_facts(path: Path) -> list[Fact]:
    """The facts of :func:`write_facts`, unchanged; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    facts = []
    for number, line in enumerate(lines, 1):
        record = json.loads(line)
        fact = Fact.from_record(record, f"{path}, line {number}", record["id"])
        fact = replace(fact, fact_token=record["fact_token"])
        facts.append(fact.as_chat() if record["chat"] else fact)
    return facts


def write_layers(
    folder: Path, updates: Mapping[int, LowRankUpdate], preserved: Mapping[int, Mapping[str, Tensor]]
) -> None:
    """Write updates, and the keys and values that later requests preserve, by layer."""
    # A file cannot hold two tensors in the same memory.
    for file, by_layer in ((UPDATE, {layer: vars(update) for layer, update in updates.items()}), (KEYS, preserved)):
        named = {f"{layer}.{name}": one.clone() for layer, some in by_layer.items() for name, one in some.items()}
        save_file(pack(named), folder / file)


def read_layers(folder: Path, scores: Mapping[str, Mapping[str, float]]) -> dict[int, PreviousLayer]:
    """A request at each of its layers, with the scores of each layer from the ledger; float64, on the CPU."""
    factors, preserved = (unpack(load_file(folder / name)) for name in (UPDATE, KEYS))
    return {
        int(layer): PreviousLayer(
            LowRankUpdate(factors[f"{layer}.left"], factors[f"{layer}.right"]),
            of_layer,
            preserved[f"{layer}.keys"],
            preserved[f"{layer}.values"],
            preserved.get(f"{layer}.deviations"),
        )
        for layer, of_layer in scores.items()
    }


def file_digests(folder: Path) -> dict[str, str]:
    """Digests of the files of a request, except its facts, which may be deleted."""
    return {path.name: digest(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name != FACTS}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Check the files of a request.

    Raises:
        InputError: A file is missing or was modified.
    """
    for name, value in digests.items():
        path = folder / name
        if not path.exists() or digest(path.read_bytes()) != value:
            state = "was modified" if path.exists() else "is missing"
            raise InputError("project", str(folder.parent.parent), f"{path} {state}: restore it from a backup.")
