"""General ability before and after: the schema of ``downstream.json``, a table, and a picture."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zu_lightning.evaluation.ability import AbilitySet
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report.pictures import Drawing, new_figure
from zu_lightning.report.results import without_nan
from zu_lightning.runtime.files import read_json, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_NAME = "downstream.json"

COLORS = ("#8c8c8c", "#00796b", "#e69f00", "#0072b2", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442")
"""Gray for the unedited model, colorblind-safe for the others."""

UNITS = {"accuracy": "accuracy (%)", "word_perplexity": "perplexity per word"}

Scores = Mapping[str, TaskScore]


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


def draw_downstream(results: Mapping[str, TaskResult]) -> Drawing:
    """The scores of one run before and after, by name of the task."""
    models: dict[str, Scores] = {
        when: {name: score for name, result in results.items() if (score := getattr(result, when)) is not None}
        for when in ("before", "after")
    }
    return draw_abilities(results, models, "downstream", "General ability before and after")


def draw_abilities(tasks: Mapping[str, TaskResult], models: Mapping[str, Scores], name: str, title: str) -> Drawing:
    """The scores of several models on the same tasks, as in figure 4 of arXiv 2605.18879.

    Args:
        tasks: The tasks, by name; their scores are not used.
        models: For each model its scores, by name of the task; the unedited model first.
        name: Of the picture.
        title: Of the picture.
    """
    panels = {
        metric: names
        for metric in UNITS
        if (names := [task for task, result in tasks.items() if result.metric == metric])
    }
    widths = [len(names) for names in panels.values()]
    figure = new_figure(2 + 1.1 * sum(widths) * max(1, len(models) / 3), 3.8)
    axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
    for axis, (metric, names) in zip(axes, panels.items(), strict=True):
        _draw(axis, {task: tasks[task] for task in names}, models)
        axis.set_ylabel(UNITS[metric])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    return Drawing(figure, name, title, _described(tasks, models))


def _draw(axis: "Axes", tasks: Mapping[str, TaskResult], models: Mapping[str, Scores]) -> None:
    width = 0.8 / len(models)
    for i, (model, scores) in enumerate(models.items()):
        found = [(place, scores[name]) for place, name in enumerate(tasks) if name in scores]
        places = [place + (i - (len(models) - 1) / 2) * width for place, _ in found]
        # A single item has no standard error, and a destroyed model no height.
        errors = [0.0 if math.isnan(score.stderr) else score.stderr for _, score in found]
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "ecolor": "black", "capsize": 2}
        axis.bar(places, [score.value for _, score in found], 0.92 * width, yerr=errors, label=model, **style)
    for place, result in enumerate(tasks.values()):
        if result.majority is not None:
            label = "most frequent answer" if place == 0 else ""  # once in the legend
            axis.hlines(result.majority, place - 0.45, place + 0.45, color="black", linestyle=":", label=label)
    axis.set_xticks(range(len(tasks)), [f"{result.title}\nn = {result.items}" for result in tasks.values()])
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)


def _described(tasks: Mapping[str, TaskResult], models: Mapping[str, Scores]) -> str:
    """Alternative text: all bars."""
    parts: Sequence[str] = [
        f"{result.title} ({UNITS[result.metric]}, {result.items} items): "
        + ", ".join(f"{model} {shown(scores.get(name))}" for model, scores in models.items())
        for name, result in tasks.items()
    ]
    return "Bars with standard errors. " + "; ".join(parts) + "."
