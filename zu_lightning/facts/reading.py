"""Facts from files and from data sets on the hub."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from zu_lightning.facts.fact import Fact, Query
from zu_lightning.facts.records import read_records
from zu_lightning.facts.schemas import converted
from zu_lightning.runtime.errors import InputError

log = logging.getLogger(__name__)


def read_facts(
    path: str | Path, *, detect_subjects: bool = True, nq_prefix: bool = False, parameter: str = "path"
) -> list[Fact]:
    """Read facts from a file or a data set on the hub: our own records, or those of CounterFact, zsRE, MQuAKE, or TOFU.

    Args:
        path: JSON Lines, JSON, CSV, or Parquet, compressed by gzip or not, or ``name:configuration:split`` on the hub.
        detect_subjects: Whether to look for the subject in the prompt if a record names none.
        nq_prefix: Whether zsRE's specificity prompts keep their prefix ``nq question:``.
        parameter: Name of the option that gives ``path``, for messages.

    Returns:
        The facts in order; a fact without ``id`` is named by its line or position. Repeated questions of public data
        sets become one fact, with the multi-hop questions and the records of all.

    Raises:
        InputError: The source cannot be read, has no facts or a malformed one, or repeats a fact or an id.
    """
    facts: list[Fact] = []
    schemas: set[str] = set()
    detected: list[str] = []
    for name, where, record in read_records(path, parameter):
        schema, records = converted(record, where, nq_prefix=nq_prefix)
        schemas |= {schema} if schema else set()
        for converted_record in records:
            facts.append(Fact.from_record(converted_record, where, name, detect_subjects=detect_subjects))
            if facts[-1].subject and not converted_record.get("subject"):
                detected.append(facts[-1].subject)
    if not facts:
        raise InputError(
            parameter, str(path), "it holds no facts: give one JSON object per line, with `prompt` and `target`."
        )
    if detected:
        log.info(
            "%s: %d facts name no subject; it was detected in the prompt of %d: %s, ...",
            path, sum(not fact.subject for fact in facts) + len(detected), len(detected), ", ".join(detected[:3]),
        )  # fmt: skip
    if schemas:
        log.info("%s: records of %s", path, " and ".join(sorted(schemas)))
        facts = _without_repeats(facts)
    _refuse_duplicates(facts, str(path))
    return facts


def facts_by_id(facts: Sequence[Fact], ids: Sequence[str]) -> list[Fact]:
    """The facts with these ids, in the order of ``facts``.

    Args:
        facts: All facts.
        ids: Lines that begin with an id, up to the first tab; other lines that begin with ``#`` are comments.

    Raises:
        InputError: An id belongs to no fact.
    """
    wanted = {line.partition("\t")[0].strip() for line in ids}
    unknown = sorted(name for name in wanted - {fact.id for fact in facts} if not name.startswith("#"))
    if unknown:
        raise InputError(
            "ids_file", unknown[:5], f"these are not ids of the {len(facts)} facts: correct the file, or leave it out."
        )
    return [fact for fact in facts if fact.id in wanted]


def _without_repeats(facts: Iterable[Fact]) -> list[Fact]:
    first: dict[Query, Fact] = {}
    for fact in facts:
        merged = first.setdefault(fact.query, fact)
        if merged is not fact:
            questions = tuple(dict.fromkeys(merged.multi_hop + fact.multi_hop))
            records = tuple(dict.fromkeys(merged.records + fact.records))
            first[fact.query] = replace(merged, multi_hop=questions, records=records)
    return list(first.values())


def _refuse_duplicates(facts: Iterable[Fact], where: str) -> None:
    ids: set[str] = set()
    queries: dict[Query, str] = {}
    for fact in facts:
        if fact.id in ids:
            raise InputError("id", fact.id, "it occurs twice, but ids must be unique: rename one.", where)
        ids.add(fact.id)
        if fact.query in queries:
            raise InputError(
                "id", fact.id, f"its prompt and target ({fact.prompt!r} -> {fact.target!r}) are those of "
                f"{queries[fact.query]!r}: remove one.", where,
            )  # fmt: skip
        queries[fact.query] = fact.id
