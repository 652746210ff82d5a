"""An append-only file of JSON Lines in which each line is chained to the one before it by a hash.

A line counts once its newline is on the disk. An incomplete last line, left by a writer that was killed, is ignored,
and the next writer removes it. Changing, removing, or swapping lines breaks the chain; removing the *last* ones does
not, so store the hash of the last line elsewhere if that matters.
"""

import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zu_lightning.runtime.errors import InputError

log = logging.getLogger(__name__)

START = "0" * 64
"""Hash that the first line follows."""


def line_hash(record: Mapping[str, Any]) -> str:
    """SHA-256 of a line without its hash, as 64 hexadecimal digits."""
    content = {name: value for name, value in record.items() if name != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_chain(path: Path) -> list[dict[str, Any]]:
    """All complete lines, in order; none if there is no file.

    Raises:
        InputError: A line is not JSON, was modified, or does not follow the one before it.
    """
    content = path.read_bytes() if path.exists() else b""
    *lines, torn = content.split(b"\n")
    if torn:
        log.warning("%s ends in %d bytes of an incomplete line: ignored", path, len(torn))
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            follows = record["previous"] == (records[-1]["hash"] if records else START)
            unchanged = record["hash"] == line_hash(record)
        except (ValueError, KeyError, TypeError):
            follows = unchanged = False
        if not (follows and unchanged):
            state = "does not follow the line before it (lines are missing)" if unchanged else "was modified"
            raise InputError(
                "ledger", "damaged", f"this line {state}: restore the ledger from a backup.", f"{path}, line {number}"
            )
        records.append(record)
    return records


def append(path: Path, record: Mapping[str, Any], after: str) -> dict[str, Any]:
    """Add a line, and return once it is on the disk; the caller holds the lock (:func:`locked`).

    Args:
        path: The file; created if it does not exist.
        record: Content of the line, serializable as JSON.
        after: Hash of the last line, or ``START``.

    Returns:
        The line, with ``previous`` and ``hash``.

    Raises:
        InputError: The file was modified, or ends in another line.
    """
    records = read_chain(path)
    last = records[-1]["hash"] if records else START
    if last != after:
        raise InputError("ledger", str(path), "another process has written to it: start again.")
    line = {**record, "previous": last}
    line["hash"] = line_hash(line)
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)  # an incomplete line
        file.write(json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)
    return line


@contextmanager
def locked(folder: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a project folder; the system releases it when the process dies.

    Args:
        folder: The project folder; created if it does not exist.
        wait: Seconds to wait for another holder.

    Raises:
        InputError: Another process holds it.
    """
    path = Path(folder) / "ledger.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    remedy = "another process is using it: wait until it is done, and start again."
                    raise InputError("project", str(path.parent), remedy) from error
                time.sleep(0.05)
        yield


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
