"""Facts to forget or keep, and how they are read from files."""

import json
import logging
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from zu_lightning.errors import InputError
from zu_lightning.facts import subjects
from zu_lightning.facts.records import read_records
from zu_lightning.facts.schemas import converted

log = logging.getLogger(__name__)

ESSENCE_PROMPT = "{} is a"
"""What the subject is must survive."""

FactToken = Literal["subject_last", "subject_first", "last"]


@dataclass(frozen=True)
class Query:
    """A prompt and the answer that a model that knows would give.

    Attributes:
        prompt: Text without trailing space.
        target: The answer, without the space that joins it to the prompt.
        chat: Whether the prompt is put to the model as a user's message, by its chat template.
    """

    prompt: str
    target: str
    chat: bool = False


@dataclass(frozen=True)
class Fact:
    """One fact, and what tells whether it is forgotten and nothing else is.

    Attributes:
        id: Unique name.
        prompt: Text without trailing space, the subject filled in.
        target: The answer.
        subject: Whom or what the fact is about; ``None`` if not given.
        subject_end: Where the subject ends in ``prompt``, in characters; the prompt's end without a subject.
        paraphrases: Other prompts for the same target, for Generalization.
        neighbors: What must stay, for Specificity.
        multi_hop: Questions that can be answered only by who knows the fact and others, for MultiHop.
        fact_token: Which token is the fact's *lookup token*, where the model is edited: the subject's last or first, or
            the prompt's last (which it is, too, where there is no subject).
        chat: Whether prompts are put to the model as a user's message, by its chat template.
    """

    id: str
    prompt: str
    target: str
    subject: str | None
    subject_end: int
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[Query, ...] = ()
    multi_hop: tuple[Query, ...] = ()
    fact_token: FactToken = "subject_last"
    chat: bool = False

    @property
    def query(self) -> Query:
        """The prompt with its answer."""
        return Query(self.prompt, self.target, self.chat)

    @property
    def paraphrased(self) -> tuple[Query, ...]:
        """The paraphrases with the answer."""
        return tuple(Query(prompt, self.target, self.chat) for prompt in self.paraphrases)

    def as_chat(self) -> "Fact":
        """The same fact, with every prompt put as a user's message."""
        neighbors, multi_hop = (
            tuple(replace(query, chat=True) for query in queries) for queries in (self.neighbors, self.multi_hop)
        )
        return replace(self, chat=True, neighbors=neighbors, multi_hop=multi_hop)

    @property
    def lookup_end(self) -> int:
        """Where the lookup token ends in ``prompt``, in characters: it is the token that holds the one before."""
        if self.subject is None or self.fact_token == "last":
            return len(self.prompt)
        return self.subject_end - (len(self.subject) - 1 if self.fact_token == "subject_first" else 0)

    @property
    def essence(self) -> "Fact | None":
        """A prompt that asks what the subject is, whose continuations should stay as they are."""
        if self.subject is None:
            return None
        return replace(self, prompt=ESSENCE_PROMPT.format(self.subject), subject_end=len(self.subject))

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], where: str, default_id: str, *, detect_subject: bool = False
    ) -> "Fact":
        """Check a record of the JSON Lines format and build the fact.

        Args:
            record: ``{"subject", "prompt", "target", "paraphrases", "neighbors", "multi_hop", "id"}``; only ``prompt``
                and ``target`` are required. ``{}`` in the prompt stands for the subject.
            where: File and line, for messages.
            default_id: The id where the record has none.
            detect_subject: Whether to look for the subject where the record names none.

        Raises:
            InputError: A field is missing, empty or of the wrong type, or the subject is not in the prompt.
        """
        if not isinstance(record, Mapping):
            raise InputError(f"{where}: a fact must be a JSON object, but is {record!r:.80}.")
        template = _text(record, "prompt", where)
        target = _text(record, "target", where)
        subject = _text(record, "subject", where) if record.get("subject") is not None else None
        if subject is None and detect_subject and "{}" not in template:
            subject = subjects.detect_subject(template)
        if "{}" in template:
            if subject is None:
                raise InputError(f"{where}: `prompt` holds {{}} for the subject, but `subject` is missing: add it.")
            prompt = template.replace("{}", subject)
            subject_end = prompt.rfind(subject) + len(subject)
        elif subject is None:
            prompt, subject_end = template, len(template)
        else:
            start = template.rfind(subject)
            if start < 0:
                raise InputError(
                    f"{where}: `subject` {subject!r} does not occur in `prompt` {template!r}: write it as in the "
                    "prompt, put {} in its place, or leave `subject` out."
                )
            prompt, subject_end = template, start + len(subject)
        paraphrases = [
            text.replace("{}", subject or "{}").rstrip() for text in _items(record, "paraphrases", where, str)
        ]
        return cls(
            id=str(record.get("id", default_id)),
            prompt=prompt,
            target=target,
            subject=subject,
            subject_end=subject_end,
            paraphrases=tuple(paraphrases),
            neighbors=_queries(record, "neighbors", where),
            multi_hop=_queries(record, "multi_hop", where),
        )


def read_facts(source: str | Path, *, detect_subjects: bool = True) -> list[Fact]:
    """Read facts from a file or a data set on the hub: records of ours, or of CounterFact, zsRE, MQuAKE or TOFU.

    Args:
        source: JSON Lines, JSON, CSV or Parquet, packed by gzip or not, or ``name:configuration`` on the hub.
        detect_subjects: Whether to look for the subject where a record names none.

    Returns:
        The facts in order; a fact without ``id`` is named by its line or place. Public data sets ask some questions
        more than once: the first record is kept, with the multi-hop questions of all.

    Raises:
        InputError: The source cannot be read, holds no fact, a malformed one, or the same fact or id twice.
    """
    facts: list[Fact] = []
    schemas: set[str] = set()
    detected: list[str] = []
    for name, where, record in read_records(source, "data.path"):
        schema, records = converted(record, where)
        schemas |= {schema} if schema else set()
        for one in records:
            facts.append(Fact.from_record(one, where, name, detect_subject=detect_subjects))
            if facts[-1].subject and not one.get("subject"):
                detected.append(facts[-1].subject)
    if not facts:
        raise InputError(f"{source} holds no facts: give one JSON object a line, with `prompt` and `target`.")
    if detected:
        log.info(
            "%s: %d facts name no subject, for %d it was found in the prompt: %s, ...",
            source, sum(not fact.subject for fact in facts) + len(detected), len(detected), ", ".join(detected[:3]),
        )  # fmt: skip
    if schemas:
        log.info("%s: records of %s", source, " and ".join(sorted(schemas)))
        facts = _without_repeats(facts)
    _refuse_duplicates(facts, str(source))
    return facts


def _without_repeats(facts: Iterable[Fact]) -> list[Fact]:
    first: dict[Query, Fact] = {}
    for fact in facts:
        known = first.setdefault(fact.query, fact)
        if known is not fact:
            questions = tuple(dict.fromkeys(known.multi_hop + fact.multi_hop))
            first[fact.query] = replace(known, multi_hop=questions)
    return list(first.values())


def facts_by_id(facts: Sequence[Fact], ids: Sequence[str]) -> list[Fact]:
    """The facts of these ids, in the order of ``facts``.

    Raises:
        InputError: There is no fact of some id.
    """
    wanted = {name.strip() for name in ids}
    missing = sorted(wanted - {fact.id for fact in facts})
    if missing:
        raise InputError(f"data.ids names {missing[:5]}, which are not ids of the {len(facts)} facts in data.path.")
    return [fact for fact in facts if fact.id in wanted]


def split_facts(
    facts: Sequence[Fact],
    forget_num: int,
    retain_num: int,
    seed: int,
    forget_ids: Sequence[str] | None = None,
    retain_ids: Sequence[str] | None = None,
    halves: bool = False,
) -> tuple[list[Fact], list[Fact]]:
    """Split facts into those to forget and those to keep, by id lists or by seed and count.

    Args:
        facts: All facts.
        forget_num: How many to forget; ignored where ``forget_ids`` is given.
        retain_num: How many others to watch; ignored where ``retain_ids`` is given.
        seed: Seed of the draw. The forget set does not depend on ``retain_num``.
        forget_ids: Ids of the facts to forget.
        retain_ids: Ids of the facts to watch.
        halves: Whether facts to keep are drawn from the first half of ``facts`` and facts to forget from the second,
            as in the paper.

    Returns:
        Forget set and retain set.

    Raises:
        InputError: Too few facts, an id that does not exist, or one that is in both lists.
    """
    by_id = {fact.id: fact for fact in facts}
    both = sorted(set(forget_ids or ()) & set(retain_ids or ()))
    if both:
        raise InputError(f"facts {both} are in both data.forget_ids and data.retain_ids: take them out of one.")
    shuffled = random.Random(seed).sample(list(facts), len(facts))
    taken = {*(forget_ids or ()), *(retain_ids or ())}
    free = [fact for fact in shuffled if fact.id not in taken]
    first_half = {fact.id for fact in facts[: len(facts) // 2]}

    def choose(ids: Sequence[str] | None, count: int, field: str) -> list[Fact]:
        if ids is not None:
            missing = [name for name in ids if name not in by_id]
            if missing:
                raise InputError(f"data.{field}_ids {missing[:5]} are not ids of the {len(facts)} facts to draw from.")
            return [by_id[name] for name in dict.fromkeys(ids)]
        pool = [fact for fact in free if not halves or (fact.id in first_half) == (field == "retain")]
        if not 0 <= count <= len(pool):
            raise InputError(
                f"data.{field}_num is {count}, but {len(pool)} of the {len(facts)} facts are free to choose from: ask "
                "for fewer."
            )
        for fact in pool[:count]:
            free.remove(fact)
        return pool[:count]

    forget = choose(forget_ids, forget_num, "forget")
    if not forget:
        raise InputError("there are no facts to forget: data.forget_num or data.forget_ids must name at least one.")
    return forget, choose(retain_ids, retain_num, "retain")


def _refuse_duplicates(facts: Iterable[Fact], where: str) -> None:
    ids: set[str] = set()
    queries: dict[Query, str] = {}
    for fact in facts:
        if fact.id in ids:
            raise InputError(f"{where}: id {fact.id!r} occurs twice: ids must be unique.")
        ids.add(fact.id)
        if fact.query in queries:
            raise InputError(
                f"{where}: facts {queries[fact.query]!r} and {fact.id!r} are the same ({fact.prompt!r} -> "
                f"{fact.target!r}): remove one."
            )
        queries[fact.query] = fact.id


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    if not isinstance(record, Mapping) or field not in record:
        raise InputError(f"{where}: `{field}` is missing: add it.")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: `{field}` must be a text that is not empty, but is {value!r:.80}.")
    return value.strip()


def _queries(record: Mapping[str, Any], field: str, where: str) -> tuple[Query, ...]:
    return tuple(
        Query(_text(item, "prompt", f"{where}, {field}[{i}]"), _text(item, "target", f"{where}, {field}[{i}]"))
        for i, item in enumerate(_items(record, field, where, dict))
    )


def _items(record: Mapping[str, Any], field: str, where: str, kind: type) -> list[Any]:
    items = record.get(field) or []
    if isinstance(items, str) and items.lstrip().startswith("["):  # a cell of a table
        try:
            items = json.loads(items)
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: `{field}` is no list in JSON ({error.msg}), but {items!r:.80}.") from error
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise InputError(f"{where}: `{field}` must be a list of {kind.__name__}, but is {items!r:.80}.")
    return items
