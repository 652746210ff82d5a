"""A fact, and the queries that test whether a model knows it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from zu_lightning.facts.subjects import detect_subject
from zu_lightning.runtime.errors import InputError

ESSENCE_PROMPT = "{} is a"
"""A prompt about the kind of a subject, which should be preserved (the essence prompt of ROME)."""

FactToken = Literal["subject_last", "subject_first", "last"]
"""Which token is a fact's lookup token: the subject's last or first, or the prompt's last."""


@dataclass(frozen=True)
class Query:
    """A prompt with its true answer.

    Attributes:
        prompt: Text without trailing space.
        target: The answer, without the space that joins it to the prompt.
        chat: Whether the prompt is given to the model as a user's message, through its chat template.
    """

    prompt: str
    target: str
    chat: bool = False


@dataclass(frozen=True)
class Fact:
    """One fact, with the queries that measure whether it has been forgotten, and nothing else.

    Attributes:
        id: Unique name.
        prompt: Text without trailing space, with the subject filled in.
        target: The answer.
        subject: The subject; ``None`` if not given.
        subject_end: End of the subject in ``prompt``, in characters; the prompt's end without a subject.
        paraphrases: Other prompts for the same target, for generalization.
        neighbors: Queries about other subjects, for specificity.
        relation: Name of the relation, such as ``city``; ``None`` if not given.
        answers: Plausible wrong answers.
        multi_hop: Questions whose answers need this fact and others.
        fact_token: Which token is the fact's *lookup token*, at which the model is edited. Without a subject it is
            the prompt's last token.
        records: Names of the records that the fact belongs to; a record can be drawn as a whole.
        chat: Whether prompts are given to the model as a user's message, through its chat template.
    """

    id: str
    prompt: str
    target: str
    subject: str | None
    subject_end: int
    paraphrases: tuple[str, ...] = ()
    neighbors: tuple[Query, ...] = ()
    multi_hop: tuple[Query, ...] = ()
    relation: str | None = None
    answers: tuple[str, ...] = ()
    fact_token: FactToken = "subject_last"
    records: tuple[str, ...] = ()
    chat: bool = False

    @property
    def query(self) -> Query:
        """The prompt with its answer."""
        return Query(self.prompt, self.target, self.chat)

    @property
    def paraphrased(self) -> tuple[Query, ...]:
        """The paraphrases with the answer."""
        return tuple(Query(prompt, self.target, self.chat) for prompt in self.paraphrases)

    @property
    def queries(self) -> tuple[Query, ...]:
        """The prompt, then the paraphrases, each with the answer."""
        return (self.query, *self.paraphrased)

    @property
    def statement(self) -> str:
        """The fact as a sentence."""
        text = f"{self.prompt} {self.target}"
        return text if text.endswith((".", "!", "?")) else f"{text}."

    def as_chat(self) -> "Fact":
        """The same fact, with every prompt given as a user's message."""
        neighbors, multi_hop = (
            tuple(replace(query, chat=True) for query in queries) for queries in (self.neighbors, self.multi_hop)
        )
        return replace(self, chat=True, neighbors=neighbors, multi_hop=multi_hop)

    @property
    def template(self) -> tuple[str, str]:
        """The prompt before and after its subject; all of it and nothing without a subject."""
        start = self.subject_end - len(self.subject or "")
        return self.prompt[:start], self.prompt[self.subject_end :]

    def about(self, subject: str) -> "Fact":
        """The same prompt about another subject; the target is still that of this fact.

        Raises:
            InputError: The prompt has no subject.
        """
        if self.subject is None:
            raise InputError("subject", None, f"fact {self.id!r} needs one that can be replaced: add the subject.")
        return replace(self, subject=subject).within(self.template)

    def within(self, template: tuple[str, str]) -> "Fact":
        """The fact with another prompt: its subject between two texts."""
        before, after = template[0] + (self.subject or ""), template[1]
        return replace(self, prompt=before + after, subject_end=len(before))

    @property
    def lookup_end(self) -> int:
        """End of the lookup token in ``prompt``, in characters: it is the token with the character before."""
        if self.subject is None or self.fact_token == "last":
            return len(self.prompt)
        return self.subject_end - (len(self.subject) - 1 if self.fact_token == "subject_first" else 0)

    @property
    def essence(self) -> "Fact | None":
        """A prompt about the kind of the subject, whose predictions should be preserved."""
        if self.subject is None:
            return None
        return replace(self, prompt=ESSENCE_PROMPT.format(self.subject), subject_end=len(self.subject))

    @classmethod
    def from_record(
        cls, record: Mapping[str, Any], where: str, default_id: str, *, detect_subjects: bool = False
    ) -> "Fact":
        """Check a record of the JSON Lines format and build the fact.

        Args:
            record: ``{"subject", "prompt", "target", "paraphrases", "neighbors", "multi_hop", "relation", "answers",
                "id", "record"}``; only ``prompt`` and ``target`` are required. ``{}`` in the prompt stands for the
                subject. A fact of several records has a list, ``records``.
            where: File and line, for messages.
            default_id: The id if the record has none.
            detect_subjects: Whether to look for the subject in the prompt if the record names none.

        Raises:
            InputError: A field is missing, empty, or of the wrong type, the subject is not in the prompt, or the prompt
                has several places for it.
        """
        if not isinstance(record, Mapping):
            raise InputError("record", record, "a fact must be a JSON object with `prompt` and `target`.", where)
        template, target = _text(record, "prompt", where), _text(record, "target", where)
        subject = _text(record, "subject", where) if record.get("subject") is not None else None
        if subject is None and detect_subjects and "{}" not in template:
            subject = detect_subject(template)
        prompt, subject_end = _filled(template, subject, where)
        paraphrases = _items(record, "paraphrases", where, str)
        name = str(record.get("id", default_id))
        return cls(
            id=name,
            prompt=prompt,
            target=target,
            subject=subject,
            subject_end=subject_end,
            paraphrases=tuple(text.replace("{}", subject or "{}").rstrip() for text in paraphrases),
            neighbors=_queries(record, "neighbors", where),
            multi_hop=_queries(record, "multi_hop", where),
            relation=_text(record, "relation", where) if record.get("relation") is not None else None,
            answers=tuple(answer.strip() for answer in _items(record, "answers", where, str)),
            records=tuple(_items(record, "records", where, str)) or (str(record.get("record", name)),),
        )


def _filled(template: str, subject: str | None, where: str) -> tuple[str, int]:
    """The prompt with its subject filled in, and the end of the subject's last occurrence."""
    if "{}" in template:
        if subject is None:
            raise InputError("subject", None, "`prompt` holds {} for the subject: add the subject.", where)
        if template.count("{}") > 1:
            remedy = "it holds {} more than once, but a fact is edited at one place: keep one, write out the rest."
            raise InputError("prompt", template, remedy, where)
        prompt = template.replace("{}", subject)
        return prompt, prompt.rfind(subject) + len(subject)
    if subject is None:
        return template, len(template)
    start = template.rfind(subject)
    if start < 0:
        raise InputError(
            "subject", subject, f"it does not occur in `prompt` {template!r}: write it as it stands in the prompt, put "
            "{} in its place, or leave `subject` out.", where,
        )  # fmt: skip
    return template, start + len(subject)


def _text(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record.get(field) if isinstance(record, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise InputError(field, value, "give a text that is not empty.", where)
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
            raise InputError(field, items, f"it is not a JSON list ({error.msg}): correct it.", where) from error
    if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
        raise InputError(field, items, f"give a list of {kind.__name__}.", where)
    return items
