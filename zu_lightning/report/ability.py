"""General ability before and after: the schema of ``downstream.json``."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zu_lightning.evaluation.ability import AbilitySet
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report.results import without_nan
from zu_lightning.runtime.files import read_json, replacing

FILE_NAME = "downstream.json"


@dataclass(frozen=True)
class TaskResult:
    """Scores of a run on one task.

    Attributes:
        title: Name of the task in papers.
        metric: ``accuracy`` (percent) or ``word_perplexity``.
        items: Number of questions, or of documents.
        majority: Accuracy of the most frequent answer, in percent; ``None`` for a perplexity.
        before: Score of the unedited model; ``None`` if it is not known.
        after: Score of the edited model; ``None`` if it is not known.
    """

    title: str
    metric: str
    items: int
    majority: float | None
    before: TaskScore | None
    after: TaskScore | None


def task_results(
    sets: Mapping[str, AbilitySet], before: Mapping[str, TaskScore], after: Mapping[str, TaskScore]
) -> dict[str, TaskResult]:
    """Results by name of the task, from sets and scores by any other name that they share."""
    return {
        asked.name: TaskResult(asked.title, asked.metric, len(asked), asked.majority, before.get(name), after.get(name))
        for name, asked in sets.items()
    }


def write_downstream(results: Mapping[str, TaskResult], folder: Path) -> Path:
    """Write ``downstream.json`` into a folder, with ``null`` for NaN and infinity; returns its path."""
    content = {name: without_nan(asdict(result)) for name, result in results.items()}
    with replacing(folder / FILE_NAME) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return folder / FILE_NAME


def read_downstream(folder: Path) -> dict[str, TaskResult]:
    """Results in ``downstream.json`` of a run's folder; empty if there is no such file.

    Raises:
        InputError: It follows another schema.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return {}
    return read_json(path, _parsed)


def _parsed(content: Any) -> dict[str, TaskResult]:
    return {
        name: TaskResult(**result | {when: _score(result[when]) for when in ("before", "after")})
        for name, result in content.items()
    }


def downstream_table(results: Mapping[str, TaskResult]) -> str:
    """All scores as text, with their standard errors."""
    lines = ["", f"{'task':12}{'items':>7}{'before':>18}{'after':>18}{'majority':>10}"]
    for result in results.values():
        majority = "-" if result.majority is None else f"{result.majority:.1f}"
        lines.append(
            f"{result.title:12}{result.items:7}{shown(result.before):>18}{shown(result.after):>18}{majority:>10}"
        )
    return "\n".join(lines)


def shown(score: TaskScore | None) -> str:
    """A score with its standard error, as text."""
    if score is None:
        return "-"
    return f"{score.value:.4g}" if math.isnan(score.stderr) else f"{score.value:.4g} ± {score.stderr:.2g}"


def _score(values: dict[str, float | None] | None) -> TaskScore | None:
    if values is None:
        return None
    return TaskScore(**{name: math.nan if value is None else value for name, value in values.items()})
