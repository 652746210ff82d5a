"""Does a server answer like the edited model, or like the unedited one?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zu_lightning.facts.fact import Fact, Query
from zu_lightning.report.results import FactResult, Results
from zu_lightning.runtime.errors import InputError
from zu_lightning.serving.endpoint import Endpoint

PARALLEL = 8
"""Number of questions that are asked at a time: servers answer them as one batch."""

Verdict = Literal["active", "not active", "unclear"]
"""Whether the edit is active: ``unclear`` if the answers fit neither model, or both."""


@dataclass(frozen=True)
class Questions:
    """Questions of one kind, and how many of them a run found answered.

    Attributes:
        kind: ``forget``, ``paraphrases``, or ``retain``.
        queries: What is asked.
        before: Percent that the unedited model answers.
        after: Percent that the edited model answers.
    """

    kind: str
    queries: list[Query]
    before: float
    after: float


@dataclass(frozen=True)
class Answers:
    """How many questions of one kind a server answers.

    Attributes:
        kind: As in :class:`Questions`.
        asked: Number of questions.
        before: Percent that the unedited model answers.
        after: Percent that the edited model answers.
        served: Percent that the server answers.
    """

    kind: str
    asked: int
    before: float
    after: float
    served: float


def questions_of(run: Path, forget: Sequence[Fact], retain: Sequence[Fact], facts: int) -> list[Questions]:
    """What a server is asked about a run.

    Args:
        run: Folder of the run, with its ``metrics.json``.
        forget: The facts that it was to forget, in its order.
        retain: The facts that it was to keep.
        facts: Maximum number of facts to forget, and of facts to keep, that are asked about.

    Raises:
        InputError: The run has not measured these facts in both models.
    """
    results = Results.read(run)
    measured = results.per_fact[:facts]
    if [fact.id for fact in forget] != results.forgotten:
        remedy = "the data of its config.yaml has changed: other facts are drawn. Take the data that the run had."
        raise InputError("run", str(run), remedy)
    if not measured or not all("efficacy" in fact.before and "efficacy" in fact.after for fact in measured):
        remedy = "its metrics.json lacks the scores of single facts before or after: let the run end, with its report."
        raise InputError("run", str(run), remedy)
    forget, retain = forget[:facts], retain[:facts]
    for fact, result in zip(forget, measured, strict=True):
        if result.prompt is not None and (fact.prompt, fact.target) != (result.prompt, result.target):
            remedy = f"fact {fact.id!r} was another one when the run was made: take the data that the run had."
            raise InputError("run", str(run), remedy)

    prompts = [[fact.query] for fact in forget]
    found = [_measured("forget", "efficacy", prompts, measured)]
    if any(fact.paraphrases for fact in forget):
        found.append(_measured("paraphrases", "generalization", [fact.paraphrased for fact in forget], measured))
    if retain and "retain" in results.before and "retain" in results.after:
        kept = [fact.query for fact in retain]
        found.append(Questions("retain", kept, results.before["retain"], results.after["retain"]))
    return found


def _measured(kind: str, metric: str, queries: Sequence[Sequence[Query]], results: Sequence[FactResult]) -> Questions:
    """The questions about each fact, and the shares of all of them that the run found answered."""
    counts = [len(of_fact) for of_fact in queries]

    def share(scores: Iterable[Mapping[str, float]]) -> float:
        return sum(n * one.get(metric, 0.0) for n, one in zip(counts, scores, strict=True)) / sum(counts)

    before, after = share(result.before for result in results), share(result.after for result in results)
    return Questions(kind, [query for of_fact in queries for query in of_fact], before, after)


def ask(endpoint: Endpoint, questions: Iterable[Questions]) -> Iterator[Answers]:
    """Ask a server; an answer counts if it begins with the true one, as in a run.

    Raises:
        InputError: See :meth:`Endpoint.answer`.
    """
    with ThreadPoolExecutor(PARALLEL) as pool:
        for group in questions:
            texts, asked = pool.map(endpoint.answer, group.queries), len(group.queries)
            right = [text.lstrip().startswith(query.target) for text, query in zip(texts, group.queries, strict=True)]
            yield Answers(group.kind, asked, group.before, group.after, 100 * sum(right) / asked)


def verdict(answers: Sequence[Answers], tolerance: float) -> Verdict:
    """Which model the answers are those of.

    Args:
        answers: Of the server.
        tolerance: By how many percent of the questions to forget, and of those to keep, they may differ from what was
            measured: servers round weights in ways of their own.
    """
    kept = [one for one in answers if one.kind == "retain"]
    forgotten = [one for one in answers if one.kind != "retain"]  # prompts and paraphrases together: ten say little
    groups = [group for group in (forgotten, kept) if group]

    def like(when: Literal["before", "after"]) -> bool:
        return all(abs(_share(group, "served") - _share(group, when)) <= tolerance for group in groups)

    if like("before") == like("after"):
        return "unclear"
    return "active" if like("after") else "not active"


def _share(answers: Sequence[Answers], name: Literal["before", "after", "served"]) -> float:
    """Percent of the questions of several kinds together."""
    shares: list[float] = [getattr(one, name) for one in answers]
    return sum(one.asked * share for one, share in zip(answers, shares, strict=True)) / sum(
        one.asked for one in answers
    )
