"""An append-only file of JSON Lines in which each line is chained to the one before it by a hash.

A line counts once its newline is on the disk. What a writer that was killed has left behind the last newline is not
counted, and the next writer removes it. Changing, removing, or swapping lines breaks the chain; removing the *last*
ones does not, so keep the hash of the last line elsewhere if that matters.
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
"""What the first line is chained to."""


def line_hash(record: Mapping[str, Any]) -> str:
    """The hash of a line: SHA-256 of everything in it but the hash itself, as 64 hexadecimal digits."""
    content = {name: value for name, value in record.items() if name != "hash"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_chain(path: Path) -> list[dict[str, Any]]:
    """All lines that count, the first one first; none if there is no file.

    Raises:
        InputError: A line is not JSON, was changed, or does not follow the one before it.
    """
    content = path.read_bytes() if path.exists() else b""
    *lines, torn = content.split(b"\n")
    if torn:
        log.warning("%s ends in %d bytes of a line that was never completed: they do not count", path, len(torn))
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            follows = record["previous"] == (records[-1]["hash"] if records else START)
            unchanged = record["hash"] == line_hash(record)
        except (ValueError, KeyError, TypeError):
            follows = unchanged = False
        if not (follows and unchanged):
            place = "the line before it" if records else "an empty ledger: lines before it are missing"
            what = f"does not follow {place}" if unchanged else "is not as it was written"
            remedy = f"this line {what}: the ledger was changed. Restore it from a backup."
            raise InputError("ledger", "damaged", remedy, f"{path}, line {number}")
        records.append(record)
    return records


def append(path: Path, record: Mapping[str, Any], after: str) -> dict[str, Any]:
    """Add a line; when this returns, it is on the disk. To be called by the holder of :func:`locked` only.

    Args:
        path: The file; created if it does not exist.
        record: What the line says: anything that JSON can hold.
        after: Hash of the line that it is to follow, or ``START``.

    Returns:
        The line, with ``previous`` and ``hash``.

    Raises:
        InputError: The file was changed, or the line that it ends in is another one.
    """
    records = read_chain(path)
    last = records[-1]["hash"] if records else START
    if last != after:
        raise InputError("ledger", str(path), "another process has written into it: start again.")
    line = {**record, "previous": last}
    line["hash"] = line_hash(line)
    is_new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.truncate(path.read_bytes().rfind(b"\n") + 1)  # what a writer that was killed has left
        file.write(json.dumps(line, sort_keys=True, separators=(",", ":")).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync(path.parent)
    return line


@contextmanager
def locked(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Within this context no other process can hold the lock; the system frees it when a process dies.

    Args:
        path: File of the lock; created if it does not exist, and never deleted.
        wait: Seconds to wait for another holder.

    Raises:
        InputError: Another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        end = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= end:
                    remedy = "another process works on it: wait until it is done, and start again."
                    raise InputError("project", str(path.parent), remedy) from error
                time.sleep(0.05)
        yield


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
