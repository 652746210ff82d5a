"""Figures of a comparison: the trade-off of forgetting and keeping, general ability, and representations."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pandas

from zu_lightning.comparison.plan import Comparison
from zu_lightning.comparison.runs import Run
from zu_lightning.comparison.tables import of_pair
from zu_lightning.comparison.tuning import score_name
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report.ability import Scores, TaskResult, draw_abilities, read_downstream
from zu_lightning.report.pictures import Drawing, new_figure, save_picture
from zu_lightning.report.representation_plots import draw_methods
from zu_lightning.tracing.representations import FILE_NAME, RepresentationMap

KEPT = ("specificity", "retain")
"""One panel each."""

BASE = "before"


def draw_trade_off(comparison: Comparison, tuning: pandas.DataFrame, model: str, data: str) -> Path:
    """Draw efficacy against specificity and retained facts, a line per method over its strengths; means over seeds.

    Args:
        comparison: The comparison, into whose folder the picture goes.
        tuning: A row for each run of all strengths, as in ``tuning.csv``.
        model: Name of the model.
        data: Name of the data set.

    Returns:
        Path of the PNG; the SVG lies beside it.
    """
    from matplotlib import colormaps

    headline = comparison.headline[data]
    efficacy, *kept = (score_name(name, headline) for name in ("efficacy", *KEPT))
    means = of_pair(tuning, model, data).groupby(["method", "strength"]).mean(numeric_only=True)
    lines = means[[efficacy, *(score for score in kept if score in means)]].groupby("method", sort=False)
    figure, colors = new_figure(11, 4.5), colormaps["tab20"]
    panels = figure.subplots(1, len(KEPT), sharex=True)
    for panel, score in zip(panels, kept, strict=True):
        for i, (method, points) in enumerate(lines):
            style = {"marker": "osD^v<>PXph*"[i % 12], "color": colors(i % 20), "markersize": 5, "linewidth": 1.2}
            if score in points:
                panel.plot(100 - points[efficacy], points[score], label=method, **style)
        panel.set(xlabel="forgotten: 100 - efficacy (%)", ylabel=f"{score} (%)", xlim=(-3, 103), ylim=(-3, 103))
        panel.grid(visible=True, alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"{model}, {data}: up and to the right is better")
    name = f"trade-off-{model}-{data}".replace(" ", "-")
    title = f"What is kept against what is forgotten: {model}, {data}"
    described = f"One line a method over its strengths: {', '.join(labels)}; one panel each for {' and '.join(KEPT)}."
    return save_picture(Drawing(figure, name, title, described), comparison.folder)


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
        folder: Folder of the comparison; the picture is written to ``pictures`` in it.

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


def draw_representations(comparison: Comparison, runs: Sequence[Run], model: str, data: str) -> list[Path]:
    """Draw what the methods do to the representations of the same facts, a panel each, if their runs have written it.

    Args:
        comparison: The comparison, into whose folder pictures are written: one for each draw and each edited layer.
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
        save_picture(draw_methods(found, layer, f"{model}, {data}, seed {seed}"), comparison.folder)
        for seed, found in by_seed.items()
        for layer in sorted({at.layer for each in found.values() for at in each.layers})
    ]
