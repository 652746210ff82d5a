"""What the lines of a ledger say, and what follows from all of them."""

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
        model: Where the base model came from.
        facts: Digests of its facts, by their ids.
        settings: Digest of everything that decided about the weights.
        code: Versions of the libraries, and a digest of the source code.
        weights: Digests of the weights ``before`` and ``after``, by their names.
        scores: What the run measured ``before`` and ``after``.
        earlier: Scores afterwards of the facts of earlier requests, by number.
        layers: What was done to each layer, by the names of :class:`zu_lightning.LayerScores`.
        files: Digests of the files in its folder.
        replaces: Number of the request that this one solves again; ``None`` if there is none.
        loading: Arguments of ``EditableLM.from_pretrained`` that decide which weights the base model has.
    """

    number: int
    time: str
    model: str
    facts: Digests
    settings: str
    code: Mapping[str, str]
    weights: Mapping[str, Digests]
    scores: Mapping[str, Scores]
    earlier: Mapping[str, Scores]
    layers: Mapping[str, Scores]
    files: Digests
    replaces: int | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class UndoEntry:
    """A request that was taken back.

    Attributes:
        number: Its own line in the ledger, from 1.
        time: When it was recorded, in ISO 8601 and UTC.
        undone: Number of the request whose update was subtracted.
        again: Numbers of later requests that depend on it: their updates were subtracted, too, and they are to be
            solved again.
        dependence: How much each later request depends on it, by number; ``None`` if that cannot be known.
        weights: Digests of the weights ``after``, by their names.
    """

    number: int
    time: str
    undone: int
    again: Sequence[int] = ()
    dependence: Mapping[str, float | None] = field(default_factory=dict)
    weights: Mapping[str, Digests] = field(default_factory=dict)


Entry = RequestEntry | UndoEntry
KINDS: dict[str, type[Entry]] = {"request": RequestEntry, "undo": UndoEntry}


def line_of(entry: Entry) -> dict[str, Any]:
    """What a line says of an entry."""
    kind = next(name for name, kind in KINDS.items() if isinstance(entry, kind))
    return {"kind": kind, **asdict(entry)}


def entry_of(line: Mapping[str, Any], where: str) -> Entry:
    """The entry of a line.

    Raises:
        InputError: The line was written by another version.
    """
    try:
        content = {name: value for name, value in line.items() if name not in ("kind", "previous", "hash")}
        return KINDS[line["kind"]](**content)
    except (KeyError, TypeError) as error:
        remedy = f"it follows another schema ({error}): use the version that wrote it."
        raise InputError("ledger", line.get("kind"), remedy, where) from error


def active(entries: Sequence[Entry]) -> list[RequestEntry]:
    """The requests whose updates are in the model, in order."""
    taken = {number for one in entries if isinstance(one, UndoEntry) for number in (one.undone, *one.again)}
    return [one for one in entries if isinstance(one, RequestEntry) and one.number not in taken]


def number_of(entries: Sequence[Entry], facts: Digests, replaces: int | None = None) -> int | None:
    """Number of the last request to forget some facts; ``None`` if there is none.

    Args:
        entries: Of a ledger.
        facts: Digests of the facts, by their ids.
        replaces: Number of the request that it solved again.
    """
    found = [one for one in entries if isinstance(one, RequestEntry) and one.facts == facts]
    return next((one.number for one in reversed(found) if one.replaces == replaces), None)


def waiting(entries: Sequence[Entry]) -> list[int]:
    """Requests that were subtracted together with one that was taken back, and have not been solved again."""
    left: list[int] = []
    for one in entries:
        if isinstance(one, UndoEntry):
            left = [number for number in (*left, *one.again) if number != one.undone]
        elif one.replaces in left:
            left.remove(one.replaces)
    return left
