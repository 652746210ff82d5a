"""Files that are never half written, and digests by which files and settings are recognized."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from zu_lightning.errors import InputError

T = TypeVar("T")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file or a folder that gets its name only once it is complete.

    Args:
        path: Where to write; replaced when the context ends without an error, left alone otherwise.

    Yields:
        A temporary path beside ``path``, at which to create the file or the folder.
    """
    path = path.resolve()  # what a link points to is replaced, not the link
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}.partial")
    try:
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
