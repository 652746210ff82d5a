"""Records of public data sets, converted to our own format."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from zu_lightning.runtime.errors import InputError

Ours = dict[str, Any]

NQ_PREFIX = "nq question: "
"""Prefix of zsRE's specificity prompts, which come from Natural Questions."""


class Schema(NamedTuple):
    """A public data set: its name, the fields that identify its records, and the conversion of a record."""

    name: str
    fields: frozenset[str]
    convert: Callable[[Mapping[str, Any]], list[Ours]]


def converted(record: Any, where: str, *, nq_prefix: bool = False) -> tuple[str | None, list[Any]]:
    """The schema of a record, and the record in our format.

    Args:
        record: A record of a public data set, or one of our own.
        where: File and line, for messages.
        nq_prefix: Whether zsRE's specificity prompts keep ``NQ_PREFIX``.

    Returns:
        Name of the schema (``None`` for our own), and the records: a multi-hop record of MQuAKE becomes several.

    Raises:
        InputError: A field is missing or of the wrong type.
    """
    if not isinstance(record, Mapping) or {"prompt", "target"} <= record.keys():
        return None, [record]
    for schema in (KEEPING_PREFIX, *SCHEMAS) if nq_prefix else SCHEMAS:
        if schema.fields <= record.keys():
            try:
                return schema.name, schema.convert(record)
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise InputError(
                    f"{schema.name} record", record, f"{type(error).__name__} at {error}: correct it.", where
                ) from error
    return None, [record]


def _counterfact(record: Mapping[str, Any]) -> list[Ours]:
    rewrite = record["requested_rewrite"]
    target = rewrite["target_true"]["str"]
    return [
        {
            "id": str(record["case_id"]),
            "subject": rewrite["subject"],
            "prompt": rewrite["prompt"],
            "target": target,
            "relation": rewrite.get("relation_id"),
            "paraphrases": _list(record["paraphrase_prompts"]),
            "neighbors": [{"prompt": prompt, "target": target} for prompt in _list(record["neighborhood_prompts"])],
        }
    ]


def _mquake(record: Mapping[str, Any]) -> list[Ours]:
    """One fact for each rewritten hop; facts of the true chain get the multi-hop questions."""
    chain = {hop["cloze"] for hop in record["single_hops"]}
    questions = [{"prompt": question, "target": record["answer"]} for question in _list(record["questions"])]
    return [
        {
            "id": f"{record['case_id']}-{i}",
            "record": str(record["case_id"]),
            "subject": hop["subject"],
            "prompt": hop["prompt"],
            "target": hop["target_true"]["str"],
            "relation": hop.get("relation_id"),
            "paraphrases": [hop["question"]],
            "multi_hop": questions if hop["prompt"].replace("{}", hop["subject"]) in chain else [],
        }
        for i, hop in enumerate(_list(record["requested_rewrite"]))
    ]


def _zsre(record: Mapping[str, Any], prefix: str = "") -> list[Ours]:
    subject = re.search(re.escape(record["subject"]), record["src"], re.IGNORECASE)
    return [
        {
            "subject": subject[0] if subject and subject[0] else None,
            "prompt": record["src"],
            "target": _list(record["answers"])[0],
            "paraphrases": [record["rephrase"]],
            "neighbors": [
                {"prompt": f"{prefix}{record['loc'].removeprefix(NQ_PREFIX)}?", "target": record["loc_ans"]},
            ],
        }
    ]


def _question_and_answer(record: Mapping[str, Any]) -> list[Ours]:
    paraphrase = record.get("paraphrased_question")
    return [
        {name: record[name] for name in ("id", "subject") if name in record}
        | {
            "prompt": record["question"],
            "target": record["answer"],
            "paraphrases": [paraphrase] if paraphrase else [],
            "answers": record.get("perturbed_answer", []),
        }
    ]


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a {type(value).__name__} where a list should be: {value!r:.40}")
    return value


SCHEMAS = (
    Schema("MQuAKE", frozenset({"requested_rewrite", "single_hops"}), _mquake),
    Schema("CounterFact", frozenset({"requested_rewrite"}), _counterfact),
    Schema("zsRE", frozenset({"src", "answers"}), _zsre),
    Schema("TOFU", frozenset({"question", "answer"}), _question_and_answer),
)
"""In order of precedence."""

KEEPING_PREFIX = Schema("zsRE", frozenset({"src", "answers"}), partial(_zsre, prefix=NQ_PREFIX))
"""zsRE as the authors of ZeroUnlearn, MEMIT, and ROME read it."""
