"""Retain text and held-out text: documents from a file, or from a data set on the hub."""

import gzip
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from zu_lightning.facts.fact import Fact
from zu_lightning.facts.records import is_file, read_records
from zu_lightning.runtime.errors import InputError, require_positive

RECORD_ENDINGS = (".json", ".jsonl", ".csv", ".parquet")
BATCH_TOKENS = 2048
"""Default of ``reading.batch_tokens``."""


@dataclass(frozen=True)
class ReadingOptions:
    """Amount of text that a run reads, and its batch size."""

    corpus_documents: int = 100_000
    """Maximum number of documents of the retain text."""
    corpus_tokens: int | None = 1_000_000
    """Maximum number of tokens of the retain text; ``null`` for all of it."""
    heldout_documents: int = 500
    """Maximum number of documents of the held-out text."""
    max_length: int = 512
    """Maximum number of tokens of a document; never more than the model's context."""
    batch_tokens: int = BATCH_TOKENS
    """Maximum number of tokens per batch of text or queries, padding included."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be read with."""
        for name, value in vars(self).items():
            require_positive(f"reading.{name}", value)


@dataclass(frozen=True)
class RetainText:
    """Retain text, and options for reading it.

    Attributes:
        documents: One text each.
        reading: Amount of text that is read, and its batch size.
        corpus: The corpus that the documents come from, or the part of it that overlaps most with them; its statistics
            are cached once for all runs, whichever documents they leave out. Empty for no shared cache.
    """

    documents: Sequence[str]
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    corpus: Sequence[str] = ()


def read_texts(source: str, limit: int = 100_000, parameter: str = "source", seed: int | None = None) -> list[str]:
    """Read documents.

    Args:
        source: A text file with one document per line; a file of JSON Lines, JSON, CSV, or Parquet with a ``text``
            field; or a data set on the hub with a ``text`` column, as ``name``, ``name:configuration``
            (``wikimedia/wikipedia:20231101.en``), or ``name:configuration:split``. Files may be compressed by gzip.
        limit: Maximum number of documents to read; a data set is streamed no further.
        parameter: Name of the option that gives the source, for messages.
        seed: Seed for drawing documents at random: those of a file uniformly, those of a data set on the hub
            from a shuffled stream (see :func:`zu_lightning.facts.records.read_records`). By default the first ones
            are taken.

    Returns:
        The documents that are not empty, in order, or in random order if they are drawn.

    Raises:
        InputError: The source cannot be read, or has no text.
    """
    documents = (text for text in _documents(source, parameter, seed) if text.strip())
    texts = list(islice(documents, limit)) if seed is None or not is_file(source) else _drawn(documents, limit, seed)
    if not texts:
        raise InputError(parameter, source, "it holds no text: give one document per line.")
    return texts


def retain_documents(corpus: Iterable[str], forget: Sequence[Fact]) -> list[str]:
    """Documents that are not empty and name no forgotten subject, so that none of them preserves what is forgotten."""
    subjects = {fact.subject for fact in forget if fact.subject}
    return [text for text in corpus if text.strip() and not any(subject in text for subject in subjects)]


def mentions(text: str, answer: str) -> bool:
    """Whether a text contains an answer as whole words, in upper or lower case."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def _drawn(texts: Iterable[str], count: int, seed: int) -> list[str]:
    """A uniform sample of ``count`` texts in random order, by reservoir sampling."""
    rng, drawn = random.Random(seed), list[str]()
    for i, text in enumerate(texts):
        if i < count:
            drawn.append(text)
        elif (place := rng.randrange(i + 1)) < count:
            drawn[place] = text
    rng.shuffle(drawn)  # early texts keep their places, and a limit on tokens would favor them
    return drawn


def _documents(source: str, parameter: str, seed: int | None) -> Iterator[str]:
    path = Path(source)
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if is_file(source) and ending not in RECORD_ENDINGS:
        yield from _lines(path, parameter)
        return
    for _, where, record in read_records(source, parameter, seed=seed):
        text = (record.get("text") or "") if isinstance(record, dict) else record
        if not isinstance(record, dict) or not isinstance(text, str):
            raise InputError("record", record, "it must have a `text` field that is a text: correct it.", where)
        yield text


def _lines(path: Path, parameter: str) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            parameter, str(path), f"text cannot be read from it ({getattr(error, 'strerror', None) or error}): name a "
            "text file in UTF-8 with one document per line, compressed by gzip or not.",
        ) from error  # fmt: skip
