"""What is kept against what is forgotten, what methods do to representations, and what else models can do."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from zu_lightning.comparison.plan import Grid, Run
from zu_lightning.comparison.tuning import score_name
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report.ability import Scores, TaskResult, draw_abilities, read_downstream
from zu_lightning.report.pictures import Drawing, new_figure, save_picture
from zu_lightning.report.representation_plots import draw_methods
from zu_lightning.tracing.representations import FILE_NAME, RepresentationMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT = ("specificity", "retain")
"""One panel each."""

BASE = "before"

Point = tuple[float, float]


def frontier(grid: Grid, runs: Sequence[Run], model: str, data: str, score: str) -> dict[str, list[Point]]:
    """For each method, (efficacy, score) after the edit at each strength, in its order; means over seeds."""
    efficacy, kept = (score_name(name, grid.headline[data]) for name in ("efficacy", score))
    found: dict[str, dict[float, list[Point]]] = {}
    for run in runs:
        results = run.results if (run.model, run.data) == (model, data) else None
        if results and run.strength is not None and kept in results.after:
            points = found.setdefault(run.method, {}).setdefault(run.strength, [])
            points.append((results.after[efficacy], results.after[kept]))
    lines: dict[str, list[Point]] = {}
    for method, by_strength in found.items():
        for _, points in sorted(by_strength.items()):
            efficacies, scores = zip(*points, strict=True)
            lines.setdefault(method, []).append((fmean(efficacies), fmean(scores)))
    return lines


def draw_frontier(grid: Grid, runs: Sequence[Run], model: str, data: str) -> Path:
    """Draw efficacy against specificity and retained facts.

    Args:
        grid: The grid, into whose folder the picture goes.
        runs: Runs of all strengths.
        model: Name of the model.
        data: Name of the data set.

    Returns:
        Path of the PNG; the SVG lies beside it.
    """
    figure = new_figure(11, 4.5)
    panels = figure.subplots(1, len(KEPT), sharex=True)
    for panel, score in zip(panels, KEPT, strict=True):
        _draw(panel, frontier(grid, runs, model, data, score), score)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{model}, {data}: up and to the right is better")
    name = f"frontier-{model}-{data}".replace(" ", "-")
    title = f"What is kept against what is forgotten: {model}, {data}"
    told = f"One line a method over its strengths: {', '.join(labels)}; one panel each for {' and '.join(KEPT)}."
    return save_picture(Drawing(figure, name, title, told), grid.folder)


def abilities(runs: Sequence[Run], model: str, data: str) -> tuple[dict[str, TaskResult], dict[str, Scores]]:
    """The downstream tasks of all runs, and for the unedited model and each method the scores; means over seeds."""
    tasks: dict[str, TaskResult] = {}
    found: dict[str, dict[str, list[TaskScore]]] = {BASE: {}}
    for run in runs:
        folder = run.measured if (run.model, run.data) == (model, data) else None
        for name, result in (read_downstream(folder) if folder else {}).items():
            tasks.setdefault(name, result)
            for column, score in ((BASE, result.before), (run.method, result.after)):
                if score is not None:
                    found.setdefault(column, {}).setdefault(name, []).append(score)
    return tasks, {
        column: {name: _mean(scores) for name, scores in by_task.items()} for column, by_task in found.items()
    }


def draw_downstream(runs: Sequence[Run], model: str, data: str, folder: Path) -> Path | None:
    """Draw what models can do before and after each method, if runs have measured it (``callbacks.Downstream``).

    Args:
        runs: Runs of all methods.
        model: Name of the model.
        data: Name of the data set.
        folder: Folder of the grid; the picture is written to ``pictures`` in it.

    Returns:
        Path of the PNG; ``None`` if nothing was measured.
    """
    tasks, models = abilities(runs, model, data)
    if not tasks:
        return None
    name = f"downstream-{model}-{data}".replace(" ", "-")
    return save_picture(draw_abilities(tasks, models, name, f"General ability: {model}, {data}"), folder)


def _mean(scores: Sequence[TaskScore]) -> TaskScore:
    """The mean over seeds. All of them ask the same questions, so that the standard error is that of one."""
    return TaskScore(fmean(score.value for score in scores), fmean(score.stderr for score in scores))


def _draw(panel: "Axes", lines: dict[str, list[Point]], score: str) -> None:
    from matplotlib import colormaps

    markers, colors = "osD^v<>PXph*", colormaps["tab20"]
    for i, (method, points) in enumerate(lines.items()):
        forgotten, kept = [100 - x for x, _ in points], [y for _, y in points]
        style: dict[str, Any] = {
            "marker": markers[i % len(markers)],
            "color": colors(i % 20),
            "markersize": 5,
            "linewidth": 1.2,
        }
        panel.plot(forgotten, kept, label=method, **style)
    panel.set(xlabel="forgotten: 100 - efficacy (%)", ylabel=f"{score} (%)", xlim=(-3, 103), ylim=(-3, 103))
    panel.grid(visible=True, alpha=0.3)


def draw_representations(grid: Grid, runs: Sequence[Run], model: str, data: str) -> list[Path]:
    """Draw what the methods do to the representations of the same facts, a panel each, if their runs have written it.

    Args:
        grid: The grid, into whose folder pictures are written: one for each draw and each edited layer.
        runs: Runs that are reported.
        model: Name of the model.
        data: Name of the data set.

    Returns:
        Paths of the PNGs; none without runs that had the callback ``Representations``.
    """
    by_seed: dict[int, dict[str, RepresentationMap]] = {}
    for run in runs:
        folder = run.measured if (run.model, run.data) == (model, data) else None
        if folder and (folder / FILE_NAME).is_file():
            by_seed.setdefault(run.seed, {})[run.method] = RepresentationMap.read(folder)
    return [
        save_picture(draw_methods(found, layer, f"{model}, {data}, seed {seed}"), grid.folder)
        for seed, found in by_seed.items()
        for layer in sorted({at.layer for each in found.values() for at in each.layers})
    ]
