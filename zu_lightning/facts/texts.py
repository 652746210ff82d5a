"""Retain and held-out text: documents of a file, or of a data set on the hub."""

import gzip
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from zu_lightning.errors import InputError
from zu_lightning.facts.records import is_file, read_records

RECORD_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")


def read_texts(source: str, limit: int = 100_000, field: str = "source") -> list[str]:
    """Read documents.

    Args:
        source: A text file with one document a line; a file of JSON Lines, JSON, CSV or Parquet with a ``text`` field;
            or a data set on the hub with a ``text`` column, as ``name`` or ``name:configuration``
            (``wikimedia/wikipedia:20231101.en``). Files may be packed by gzip.
        limit: Most documents to read; a data set is streamed no further.
        field: Name of the option, for messages.

    Returns:
        The documents that are not empty, in order.

    Raises:
        InputError: The source cannot be read or holds no text.
    """
    texts = list(islice((text for text in _documents(source, field) if text.strip()), limit))
    if not texts:
        raise InputError(f"{field} {source!r} holds no text: give one document a line.")
    return texts


def _documents(source: str, field: str) -> Iterator[str]:
    path = Path(source)
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if is_file(source) and ending not in RECORD_ENDINGS:
        yield from _lines(path, field)
        return
    for _, where, record in read_records(source, field):
        text = (record.get("text") or "") if isinstance(record, dict) else record
        if not isinstance(record, dict) or not isinstance(text, str):
            raise InputError(f"{where}: `text` must be a text, but the record is {record!r:.80}.")
        yield text


def _lines(path: Path, field: str) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read text from {field} {str(path)!r} ({getattr(error, 'strerror', None) or error}): name a text "
            "file in UTF-8 with one document a line, or one packed by gzip."
        ) from error
