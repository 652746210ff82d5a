"""Files that are never half written, and digests by which files and settings are recognized."""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from zu_lightning.runtime.errors import InputError

T = TypeVar("T")

NO_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
"""Errors of the operating system that free space would have avoided, and what they mean."""


class DiskFullError(OSError):
    """A file could not be written for lack of room.

    Args:
        number: The error of the operating system, one of ``NO_ROOM``.
        path: What could not be written.
    """

    def __init__(self, number: int, path: Path) -> None:
        super().__init__(number, NO_ROOM[number], str(path))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}. Free some space in {Path(self.filename).parent}."


def out_of_room(error: BaseException) -> int | None:
    """Which of ``NO_ROOM`` an error is; ``None`` if it is something else.

    Libraries that write by other means than Python's files raise errors of their own, in the system's words.
    """
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return error.errno
    return next((number for number in NO_ROOM if os.strerror(number) in str(error)), None)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be written for lack of room.

    Raises:
        DiskFullError: See above; all other errors are passed on.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        number = out_of_room(error)
        if number is None:
            raise
        raise DiskFullError(number, path) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or a folder that gets its name only once it is complete.

    Args:
        path: Where to write; replaced when the context ends without an error, left alone otherwise.

    Yields:
        A temporary path beside ``path``, at which to create the file or the folder.

    Raises:
        DiskFullError: There is no room for it.
    """
    path = path.resolve()  # what a link points to is replaced, not the link
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def read_json(path: Path, parse: Callable[[Any], T]) -> T:
    """What a file of a run's folder says.

    Args:
        path: The file.
        parse: Makes of its content what is wanted, and fails if it follows another schema.

    Raises:
        InputError: The file cannot be read, or follows another schema.
    """
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        remedy = f"it holds no {path.name} that can be read ({error})."
        raise InputError("folder", str(path.parent), remedy) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("folder", str(path.parent), f"its {path.name} follows another schema ({error}).") from error


def digest(*parts: object) -> str:
    """32 hexadecimal digits that other ``parts`` would not have.

    Args:
        parts: Bytes as they are; anything else by its ``str``, which must tell it apart from others.
    """
    hashed = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode(errors="surrogatepass")
        hashed.update(f"{len(content)}:".encode())
        hashed.update(content)
    return hashed.hexdigest()[:32]
