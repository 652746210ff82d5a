"""Retain and held-out text: one document a line of a file, or a data set of the hub."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from zu_lightning.errors import InputError

FILE_ENDINGS = (".txt", ".text", ".md", ".json", ".jsonl", ".csv", ".parquet", ".gz")
"""What is surely the name of a file, so that nobody waits for the hub to say that it is no data set."""


def read_texts(source: str, limit: int = 100_000, field: str = "source") -> list[str]:
    """Read documents.

    Args:
        source: A text file with one document a line, or a data set on the hub with a ``text`` column, as ``name`` or
            ``name:configuration`` (``wikimedia/wikipedia:20231101.en``).
        limit: Most documents to read; a data set is streamed no further.
        field: Name of the option, for messages.

    Returns:
        The documents that are not empty, in order.

    Raises:
        InputError: The source cannot be read or holds no text.
    """
    if Path(source).suffix in FILE_ENDINGS and not Path(source).exists():
        raise InputError(f"cannot read text from {field} {source!r}: there is no such file.")
    try:
        lines = _file_lines(Path(source)) if Path(source).exists() else _data_set_texts(source)
        texts = list(islice((text for text in lines if text.strip()), limit))
    except Exception as error:  # whatever the hub, the disk or the decoder raises: the user's answer is the same
        raise InputError(
            f"cannot read text from {field} {source!r}: it is no text file with one document a line, and no data set "
            f"that the hub gives us ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
        ) from error
    if not texts:
        raise InputError(f"{field} {source!r} holds no text: give one document a line.")
    return texts


def _file_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        for line in file:
            yield line.rstrip("\n")


def _data_set_texts(source: str) -> Iterator[str]:
    from datasets import load_dataset  # slow to import, and not needed for files

    name, _, configuration = source.partition(":")
    for record in load_dataset(name, configuration or None, split="train", streaming=True):
        yield record["text"]
