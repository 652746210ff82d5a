"""Entries of a ledger, and the state that follows from all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from zu_lightning.runtime.errors import InputError

Digests = Mapping[str, str]
Scores = Mapping[str, float]


@dataclass(frozen=True)
class RequestEntry:
    """A request that was carried out.

    Attributes:
        number: Its line in the ledger, from 1.
        time: When it was recorded, in ISO 8601 and UTC.
        model: Where the base model was loaded from.
        settings: Digest of everything that determines the weights.
        code: Versions of the libraries, and a digest of the source code.
        weights: Digests of the weights ``before`` and ``after``, by their names.
        scores: Scores of the run, ``before`` and ``after``.
        previous_scores: Scores afterwards of the facts of previous requests, by number.
        facts: Digests of its facts, by their ids.
        layers: Effect on each layer, by the names of :class:`zu_lightning.LayerScores`.
        files: Digests of the files in its folder.
        replaces: Number of the request that this one solves again; ``None`` if there is none.
        loading: Arguments of ``EditableLM.from_pretrained`` that determine the weights of the base model.
    """

    number: int
    time: str
    model: str
    settings: str
    code: Mapping[str, str]
    weights: Mapping[str, Digests]
    scores: Mapping[str, Scores]
    previous_scores: Mapping[str, Scores]
    facts: Digests = field(default_factory=dict)
    layers: Mapping[str, Scores] = field(default_factory=dict)
    files: Digests = field(default_factory=dict)
    replaces: int | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RevertEntry:
    """A request that was reverted.

    Attributes:
        number: Its own line in the ledger, from 1.
        time: When it was recorded, in ISO 8601 and UTC.
        reverted: Number of the request whose update was subtracted.
        dependent: Numbers of later requests that depend on it: their updates were subtracted, too, and they have to be
            solved again.
        dependence: How much each later request depends on it, by number; ``None`` if that is unknown.
        weights: Digests of the weights ``after``, by their names.
    """

    number: int
    time: str
    reverted: int
    dependent: Sequence[int] = ()
    dependence: Mapping[str, float | None] = field(default_factory=dict)
    weights: Mapping[str, Digests] = field(default_factory=dict)


Entry = RequestEntry | RevertEntry
KINDS: dict[str, type[Entry]] = {"request": RequestEntry, "undo": RevertEntry}

STORED_AS = {"previous_scores": "earlier", "reverted": "undone", "dependent": "again"}
"""Attributes that a line calls by another name: the format is that of the first release."""


def line_of(entry: Entry) -> dict[str, Any]:
    """The content of an entry's line."""
    kind = next(name for name, kind in KINDS.items() if isinstance(entry, kind))
    return {"kind": kind} | {STORED_AS.get(name, name): value for name, value in asdict(entry).items()}


def entry_of(line: Mapping[str, Any], where: str) -> Entry:
    """The entry of a line.

    Raises:
        InputError: The line was written by another version.
    """
    names = {stored: name for name, stored in STORED_AS.items()}
    try:
        content = {names.get(k, k): value for k, value in line.items() if k not in ("kind", "previous", "hash")}
        return KINDS[line["kind"]](**content)
    except (KeyError, TypeError) as error:
        remedy = f"it follows another schema ({error}): use the version that wrote it."
        raise InputError("ledger", line.get("kind"), remedy, where) from error


def active(entries: Sequence[Entry]) -> list[RequestEntry]:
    """The requests whose updates are in the model, in order."""
    subtracted = {
        number for one in entries if isinstance(one, RevertEntry) for number in (one.reverted, *one.dependent)
    }
    return [one for one in entries if isinstance(one, RequestEntry) and one.number not in subtracted]


def number_of(entries: Sequence[Entry], facts: Digests, replaces: int | None = None) -> int | None:
    """Number of the last request to forget some facts; ``None`` if there is none.

    Args:
        entries: Entries of a ledger.
        facts: Digests of the facts, by their ids.
        replaces: Number of the request that it solved again.
    """
    requests = [one for one in reversed(entries) if isinstance(one, RequestEntry)]
    return next((one.number for one in requests if (one.facts, one.replaces) == (facts, replaces)), None)


def waiting(entries: Sequence[Entry]) -> list[int]:
    """Requests that were subtracted because they depend on a reverted one, and have not been solved again."""
    left: list[int] = []
    for one in entries:
        if isinstance(one, RevertEntry):
            left = [number for number in (*left, *one.dependent) if number != one.reverted]
        elif one.replaces in left:
            left.remove(one.replaces)
    return left
