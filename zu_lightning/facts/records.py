"""Records of a file (JSON Lines, JSON, CSV, Parquet, compressed by gzip or not), or of a data set on the hub."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from zu_lightning.runtime.errors import InputError

FILE_ENDINGS = (".txt", ".text", ".tsv", ".md", ".json", ".jsonl", ".csv", ".parquet", ".gz")
"""Endings of files: a missing file is then reported without asking the hub for a data set of its name."""


class Record(NamedTuple):
    """One record: its default name, its file and line (for messages), and its content."""

    name: str
    where: str
    content: Any


SHUFFLE_BUFFER = 10_000
"""Size of the buffer from which records of a data set on the hub are drawn."""


def read_records(source: str | Path, parameter: str, *, seed: int | None = None) -> Iterator[Record]:
    """Read the records of a file, or of a data set on the hub.

    Args:
        source: A file, in the format of its ending (by default JSON or JSON Lines), or a data set on the hub as
            ``name``, ``name:configuration``, or ``name:configuration:split``, streamed. The default split is
            ``train``, or else the first. The configuration may be empty.
        parameter: Name of the option that gives the source, for messages.
        seed: Seed for shuffling a data set on the hub: its shards, and records within a buffer of ``SHUFFLE_BUFFER``.
            Files are read in order.

    Yields:
        The records.

    Raises:
        InputError: The source cannot be read, or a record is malformed.
    """
    path = Path(source)
    if not is_file(source):
        yield from _of_hub(str(source), parameter, seed)
        return
    content, kind = _unpacked(path, parameter)
    if kind == ".parquet":
        yield from _of_parquet(content, path, parameter)
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(parameter, str(path), f"it is not in UTF-8 ({error}): convert it.") from error
    yield from _of_csv(text, path) if kind == ".csv" else _of_json(text, path)


def is_file(source: str | Path) -> bool:
    """Whether a source is a file rather than a data set on the hub."""
    return Path(source).exists() or Path(source).suffix in FILE_ENDINGS


def _unpacked(path: Path, parameter: str) -> tuple[bytes, str]:
    """The uncompressed content of a file, and the ending for its format."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            return gzip.decompress(content), path.with_suffix("").suffix
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            parameter, str(path), f"it cannot be read ({getattr(error, 'strerror', None) or error}): name a file of "
            "JSON Lines, JSON, CSV, or Parquet, compressed by gzip or not.",
        ) from error  # fmt: skip
    return content, path.suffix


def _of_json(text: str, path: Path) -> Iterator[Record]:
    if text.lstrip().startswith("["):
        for i, content in enumerate(_parsed(text, str(path))):
            yield Record(str(i), f"{path}, record {i}", content)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Record(str(number), f"{path}, line {number}", _parsed(line, f"{path}, line {number}"))


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            "JSON", text, f"it is not valid at character {error.pos} ({error.msg}): correct it.", where
        ) from error
    except RecursionError as error:
        raise InputError("JSON", text, "it is nested too deeply to be read: correct it.", where) from error


def _of_csv(text: str, path: Path) -> Iterator[Record]:
    """Rows by the names in the header; empty cells are left out."""
    csv.field_size_limit(2**31 - 1)
    try:
        for number, row in enumerate(csv.DictReader(io.StringIO(text), strict=True), 1):
            where = f"{path}, record {number}"
            if None in row or None in row.values():
                raise InputError("row", row, "it does not have as many cells as the header: correct it.", where)
            yield Record(str(number), where, {name: cell for name, cell in row.items() if cell})
    except csv.Error as error:
        raise InputError("CSV", text, f"it is not valid ({error}): correct it.", str(path)) from error


def _of_parquet(content: bytes, path: Path, parameter: str) -> Iterator[Record]:
    import pyarrow  # comes with datasets, slow to import
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(content)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(parameter, str(path), f"it is not a Parquet file ({error}): correct it.") from error
    for i, row in enumerate(rows):
        yield Record(str(i), f"{path}, record {i}", {k: v for k, v in row.items() if v is not None})


def _of_hub(source: str, parameter: str, seed: int | None) -> Iterator[Record]:
    from datasets import load_dataset  # slow to import, and not needed for files

    name, configuration, split = (*source.split(":", 2), "", "")[:3]
    try:
        splits = load_dataset(name, configuration or None, streaming=True)
        rows = splits[split] if split else splits.get("train", next(iter(splits.values())))
        if seed is not None:
            rows = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        for i, row in enumerate(rows):
            yield Record(str(i), f"{source}, record {i}", row)
    except Exception as error:  # whatever the hub, the disk, or the decoder raises: the user's remedy is the same
        first_line = next(iter(str(error).splitlines()), "")
        raise InputError(
            parameter, source, "there is no such file, and no data set of this name can be loaded from the hub "
            f"({type(error).__name__}: {first_line}): check the name.",
        ) from error  # fmt: skip
