"""Files that are never half written, and digests by which files and settings are recognized."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
