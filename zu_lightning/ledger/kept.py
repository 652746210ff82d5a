"""What a project folder keeps of a request beside the ledger: texts, keys, and the update."""

import json
import logging
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

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
"""The ledger itself, and the folder with a folder for each request."""

FACTS, UPDATE, KEYS = "facts.jsonl", "update.safetensors", "keys.safetensors"
"""Files of a request: its texts, its thin factors, and what keeps it in effect."""


def fact_digest(fact: Fact, salt: str) -> str:
    """A digest of a prompt and its answer, which nobody can guess without the project's salt."""
    return digest("fact", salt, fact.prompt, fact.target)


def read_salt(folder: Path) -> str:
    """The salt of a project; made, from random bits, if there is none."""
    path = folder / "salt"
    if not path.exists():
        if (folder / LEDGER).exists():
            log.warning(
                "%s is gone, and a new one is made: facts of earlier requests are recognized by their ids only, and "
                "a file of facts that names them once more is not refused.", path,
            )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f".salt.{os.getpid()}.partial"
        try:
            own.touch(mode=0o600)
            own.write_text(secrets.token_hex(16))
            sync(own)
            with suppress(FileExistsError):  # another process was faster
                os.link(own, path)
            sync(folder)
        finally:
            own.unlink()
    return path.read_text()


def write_facts(path: Path, facts: Sequence[Fact]) -> None:
    """Write facts as JSON Lines that :func:`zu_lightning.read_facts` reads, too."""
    path.write_text("".join(json.dumps(_record(fact), ensure_ascii=False) + "\n" for fact in facts), encoding="utf-8")


def read_facts_kept(path: Path) -> list[Fact]:
    """The facts that were written, exactly; none if there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    facts = []
    for number, line in enumerate(lines, 1):
        record = json.loads(line)
        fact = Fact.from_record(record, f"{path}, line {number}", record["id"])
        fact = replace(fact, fact_token=record["fact_token"])
        facts.append(fact.as_chat() if record["chat"] else fact)
    return facts


def _record(fact: Fact) -> dict[str, Any]:
    queries = {
        name: [{"prompt": query.prompt, "target": query.target} for query in getattr(fact, name)]
        for name in ("neighbors", "multi_hop")
    }
    plain = ("id", "prompt", "target", "subject", "relation", "fact_token", "chat")
    lists = {name: list(getattr(fact, name)) for name in ("paraphrases", "answers", "records")}
    return {name: getattr(fact, name) for name in plain} | queries | lists


def write_layers(folder: Path, updates: Mapping[int, LowRankUpdate], kept: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Write thin factors, and what keeps them in effect."""
    # A file cannot hold two tensors in the same memory.
    for file, by_layer in ((UPDATE, {layer: vars(update) for layer, update in updates.items()}), (KEYS, kept)):
        named = {f"{layer}.{name}": one.clone() for layer, some in by_layer.items() for name, one in some.items()}
        save_file(pack(named), folder / file)


def read_layers(folder: Path, scores: Mapping[str, Mapping[str, float]]) -> dict[int, PreviousLayer]:
    """What a request did to each layer, with the scores that the ledger has of it; float64, on the CPU."""
    factors, kept = (unpack(load_file(folder / name)) for name in (UPDATE, KEYS))
    return {
        int(layer): PreviousLayer(
            LowRankUpdate(factors[f"{layer}.left"], factors[f"{layer}.right"]),
            found,
            kept[f"{layer}.keys"],
            kept[f"{layer}.values"],
            kept.get(f"{layer}.deviations"),
        )
        for layer, found in scores.items()
    }


def file_digests(folder: Path) -> dict[str, str]:
    """Digests of the files that a request needs; not of its texts, which may be deleted."""
    return {path.name: digest(path.read_bytes()) for path in sorted(folder.iterdir()) if path.name != FACTS}


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse files of a request that are missing or are not as they were written.

    Raises:
        InputError: See above.
    """
    for name, value in digests.items():
        path = folder / name
        if not path.exists() or digest(path.read_bytes()) != value:
            what = "is not as it was written" if path.exists() else "is missing"
            raise InputError("project", str(folder.parent.parent), f"{path} {what}: restore it from a backup.")
