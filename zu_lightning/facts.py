"""Facts to forget or keep, and how they are read from files."""

import gzip
import json
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zu_lightning.errors import InputError


@dataclass(frozen=True)
class Query:
    """A prompt and the answer that a model that knows would give.

    Attributes:
        prompt: Text without trailing space.
        target: The answer, without the space that joins it to the prompt.
    """

    prompt: str
    target: str


@dataclass(frozen=True)
class Fact:
    """One fact, and what tells whether it is forgotten and nothing else is.

    Attributes:
        id: Unique name.
        prompt: Text without trailing space, the subject filled in.
        target: The answer.
        subject: Whom or what the fact is about; ``None`` if not given.
        subject_end: Where the subject ends in ``prompt``, in characters; the prompt's end without a subject. The
            token that holds the character before is the fact's *lookup token*.
        paraphrases: Other prompts for the same target, for Generalization.
        neighbors: What must stay, for Specificity.
    """

    id: str
    prompt: str
    target: str
    subject: str | None
    subject_end: int
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[Query, ...] = ()

    @property
    def query(self) -> Query:
        """The prompt with its answer."""
        return Query(self.prompt, self.target)

    @classmethod
    def from_record(cls, record: Mapping[str, Any], where: str, default_id: str) -> "Fact":
        """Check a record of the JSON Lines format and build the fact.

        Args:
            record: ``{"subject", "prompt", "target", "paraphrases", "neighbors", "id"}``; only ``prompt`` and
                ``target`` are required. ``{}`` in the prompt stands for the subject.
            where: File and line, for messages.
            default_id: The id where the record has none.

        Raises:
            InputError: A field is missing, empty or of the wrong type, or the subject is not in the prompt.
        """
        if not isinstance(record, Mapping):
            raise InputError(f"{where}: a fact must be a JSON object, but is {record!r:.80}.")
        template = _text(record, "prompt", where)
        target = _text(record, "target", where)
        subject = _text(record, "subject", where) if record.get("subject") is not None else None
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
        neighbors = [
            Query(_text(item, "prompt", f"{where}, neighbors[{i}]"), _text(item, "target", f"{where}, neighbors[{i}]"))
            for i, item in enumerate(_items(record, "neighbors", where, dict))
        ]
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
            neighbors=tuple(neighbors),
        )


def read_facts(path: str | Path) -> list[Fact]:
    """Read facts from a file: JSON Lines or a JSON array, of our own records or of CounterFact's; ``.gz`` is unpacked.

    Args:
        path: The file.

    Returns:
        The facts in the order of the file; a fact without ``id`` is named by its line or place. CounterFact asks some
        questions more than once: the first record is kept.

    Raises:
        InputError: The file is missing, holds no fact, a malformed one, or the same fact or id twice.
    """
    path = Path(path)
    facts, counterfact = [], False
    for name, where, record in _records(path):
        if isinstance(record, Mapping) and "requested_rewrite" in record:
            record, counterfact = _from_counterfact(record, where), True
        facts.append(Fact.from_record(record, where, name))
    if not facts:
        raise InputError(f"{path} holds no facts: give one JSON object a line, with `prompt` and `target`.")
    if counterfact:
        first: dict[Query, Fact] = {}
        for fact in facts:
            first.setdefault(fact.query, fact)
        facts = list(first.values())
    _refuse_duplicates(facts, str(path))
    return facts


def _records(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Name, place (for messages) and content of every record of a JSON or JSON Lines file."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = content.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read facts from data.path {str(path)!r} ({getattr(error, 'strerror', None) or error}): "
            "name a JSON Lines or JSON file in UTF-8, or one packed by gzip."
        ) from error
    if text.lstrip().startswith("["):
        for i, record in enumerate(_parsed(text, str(path))):
            yield str(i), f"{path}, record {i}", record
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield str(number), f"{path}, line {number}", _parsed(line, f"{path}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON ({error.msg} at character {error.pos}): mend it.") from error


def _from_counterfact(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A record of CounterFact (ROME, arXiv 2202.05262) in our format: the true answer is what has to go."""
    try:
        rewrite = record["requested_rewrite"]
        target = rewrite["target_true"]["str"]
        return {
            "id": str(record["case_id"]),
            "subject": rewrite["subject"],
            "prompt": rewrite["prompt"],
            "target": target,
            "paraphrases": record["paraphrase_prompts"],
            "neighbors": [{"prompt": prompt, "target": target} for prompt in record["neighborhood_prompts"]],
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"{where}: a CounterFact record with {type(error).__name__} at {error}: mend it.") from error


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
                raise InputError(f"data.{field}_ids {missing[:5]} are not ids of the {len(facts)} facts in data.path.")
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


def _items(record: Mapping[str, Any], field: str, where: str, kind: type) -> list[Any]:
    items = record.get(field) or []
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise InputError(f"{where}: `{field}` must be a list of {kind.__name__}, but is {items!r:.80}.")
    return items
