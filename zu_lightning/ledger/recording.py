"""Record a request in the ledger: first its files, all at once, then its line."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from zu_lightning.editing.editor import LayerEdit
from zu_lightning.editing.request import History, Request
from zu_lightning.facts.fact import Fact
from zu_lightning.ledger.chain import sync
from zu_lightning.ledger.entries import RequestEntry
from zu_lightning.ledger.files import CONFIGURATION, FACTS, LEDGER, file_digests, write_facts, write_layers
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest, replacing

CHANGED = "another run has written to it: start again, without --ckpt_path."
"""Remedy for a run that has read an older ledger."""


def unchanged(history: History, forget: Sequence[Fact] = ()) -> Ledger:
    """The ledger of a project, if nothing was written to it since a request was made from it.

    Args:
        history: State of the ledger that the request was made from.
        forget: Facts of the request if the last line may be its own; otherwise none.

    Raises:
        InputError: Another run has written to it.
    """
    ledger = Ledger.read(history.folder)
    before = ledger.until(len(ledger.entries)) if ledger.ends_in(forget) else ledger
    if history.head not in (ledger.head, before.head):
        raise InputError("project", str(history.folder), CHANGED)
    return ledger


def record(
    request: Request, entry: RequestEntry, edits: Mapping[int, LayerEdit],
    preserved: Mapping[int, Mapping[str, Tensor]], configuration: Path | None = None,
) -> Ledger:  # fmt: skip
    """Record a request in the ledger of its project; the caller holds the lock.

    Whenever the process is killed, the ledger has the request with all of its files, or does not have it. Recording
    the same request again changes nothing.

    Args:
        request: The request.
        entry: Results of the run; facts, layers, and files are added here.
        edits: Its edits, by layer.
        preserved: By layer, what later requests preserve: ``keys``, ``values``, and ``deviations``.
        configuration: The resolved configuration of the run, if there is one, with which it can be solved again.

    Returns:
        The ledger with the request as its last line.

    Raises:
        InputError: The ledger was changed meanwhile; then nothing is written.
        ValueError: The request belongs to no project.
    """
    history = request.history
    if history is None:
        raise ValueError("the request belongs to no project.")
    ledger = unchanged(history, request.forget)
    if ledger.head != history.head:  # the request is recorded already
        return ledger
    folder, facts = ledger.folder_of(request.number), ledger.digests_of(request.forget)
    (history.folder / LEDGER).touch()  # from now on a missing ledger is an error
    with replacing(folder) as temporary:
        temporary.mkdir(mode=0o700)
        write_layers(temporary, {layer: edit.update for layer, edit in edits.items()}, preserved)
        if history.keeps_texts:
            write_facts(temporary / FACTS, request.forget)
        if configuration is not None and configuration.exists():
            shutil.copyfile(configuration, temporary / CONFIGURATION)
        for path in temporary.iterdir():
            path.chmod(0o600)
            sync(path)
        sync(temporary)
    for path in (folder.parent, history.folder):
        sync(path)
    layers = {str(layer): vars(edit.scores) for layer, edit in edits.items()}
    return ledger.append(
        replace(entry, facts=facts, layers=layers, files=file_digests(folder), replaces=history.replaces)
    )


def source_digest() -> str:
    """Digest of the library's source code."""
    root = Path(__file__).parents[1]
    files = sorted(root.rglob("*.py"))
    return digest(*(part for path in files for part in (path.relative_to(root), path.read_bytes())))
