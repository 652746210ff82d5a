"""How a request gets its line in the ledger: first its files, all at once, then the line."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import zu_lightning.runtime.errors
from zu_lightning.editing.editor import LayerEdit
from zu_lightning.editing.request import History, Request
from zu_lightning.facts.fact import Fact
from zu_lightning.ledger.chain import sync
from zu_lightning.ledger.entries import RequestEntry
from zu_lightning.ledger.kept import FACTS, LEDGER, file_digests, write_facts, write_layers
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest, replacing
from zu_lightning.runtime.timing import now

CONFIGURATION = "config.yaml"
"""The resolved configuration of the run, among the files of a request."""

CHANGED = "another run has written into it: start again, without --ckpt_path."
"""What is said to a run that has read an older ledger."""


@dataclass(frozen=True)
class Outcome:
    """What came of a request.

    Attributes:
        model: Where the base model came from.
        loading: Arguments of ``EditableLM.from_pretrained`` that decide which weights it has.
        settings: Digest of everything that decided about the weights.
        versions: Of the libraries.
        weights: Digests of the weights ``before`` and ``after``, by their names.
        scores: What was measured ``before`` and ``after``.
        earlier: Scores afterwards of the facts of earlier requests, by number.
        edits: What was done, by layer.
        kept: By layer, what later requests need to keep it in effect: ``keys``, ``values``, and ``deviations``.
    """

    model: str
    loading: Mapping[str, Any]
    settings: str
    versions: str
    weights: Mapping[str, Mapping[str, str]]
    scores: Mapping[str, Mapping[str, float]]
    earlier: Mapping[int, Mapping[str, float]]
    edits: Mapping[int, LayerEdit]
    kept: Mapping[int, Mapping[str, Tensor]]


def unchanged(history: History, forget: Sequence[Fact] = ()) -> Ledger:
    """The ledger of a project, if nobody has written into it since a request was made from it.

    Args:
        history: What the request knows of the ledger.
        forget: Its facts if the last line may be its own; otherwise none.

    Raises:
        InputError: Somebody has written into it.
    """
    ledger = Ledger.read(history.folder)
    before = ledger.until(len(ledger.entries)) if ledger.ends_in(forget) else ledger
    if history.head not in (ledger.head, before.head):
        raise InputError("project", str(history.folder), CHANGED)
    return ledger


def record(request: Request, outcome: Outcome, configuration: Path | None = None) -> Ledger:
    """Record a request in the ledger of its project; the caller holds the lock.

    Whenever the process is killed, the ledger has the request with all of its files, or does not have it. Recording
    the same request again changes nothing.

    Args:
        request: What was asked.
        outcome: What came of it.
        configuration: The resolved configuration of the run, if there is one, by which it can be solved again.

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
    if ledger.head != history.head:  # it has its line
        return ledger
    folder, facts = ledger.folder_of(request.number), ledger.digests_of(request.forget)
    (history.folder / LEDGER).touch()  # from now on it must be there
    with replacing(folder) as temporary:
        temporary.mkdir(mode=0o700)
        write_layers(temporary, {layer: edit.update for layer, edit in outcome.edits.items()}, outcome.kept)
        if history.keeps_texts:
            write_facts(temporary / FACTS, request.forget)
        if configuration is not None and configuration.exists():
            shutil.copyfile(configuration, temporary / CONFIGURATION)
        for path in temporary.iterdir():
            path.chmod(0o600)
            sync(path)
        sync(temporary)
    for name in (folder.parent, history.folder):
        sync(name)
    return ledger.append(
        RequestEntry(
            number=request.number,
            time=now(),
            model=outcome.model,
            facts=facts,
            settings=outcome.settings,
            code={"versions": outcome.versions, "source": source_digest()},
            weights=outcome.weights,
            scores=outcome.scores,
            earlier={str(number): scores for number, scores in outcome.earlier.items()},
            layers={str(layer): vars(edit.scores) for layer, edit in outcome.edits.items()},
            files=file_digests(folder),
            replaces=history.replaces,
            loading=outcome.loading,
        )
    )


def source_digest() -> str:
    """A digest of the library's source code."""
    root = Path(zu_lightning.runtime.errors.__file__).parent
    files = sorted(root.rglob("*.py"))
    return digest(*(part for path in files for part in (path.relative_to(root), path.read_bytes())))
