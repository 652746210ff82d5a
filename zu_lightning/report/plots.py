"""Pictures of every run: scores before and after, attacks, and the spectrum of the retain keys."""

from collections.abc import Sequence
from typing import Any

from zu_lightning.evaluation.score_table import SCORES
from zu_lightning.report.pictures import Drawing, new_figure
from zu_lightning.report.results import Results

BEFORE, AFTER, GOLD = "#9aa5b1", "#1f5fa8", "#c98a00"
"""Colorblind-safe, and distinct in print."""

MARKS = {"base": ("before", BEFORE, "o"), "edited": ("after", AFTER, "D"), "gold": ("gold", GOLD, "|")}
"""Name, color, and shape of each model's marks."""

ROW = 0.42
"""Inches of a row of bars."""


def draw_scores(results: Results) -> Drawing:
    """Bars of the scores in percent, before and after, with their intervals."""
    names = [score.name for score in SCORES if score.unit == "percent" and score.name in results.after]
    figure = new_figure(7, 1.2 + 2 * ROW * len(names))
    panel = figure.subplots()
    for when, color, shift in (("before", BEFORE, 0.2), ("after", AFTER, -0.2)):
        scores = getattr(results, when)
        for row, name in enumerate(reversed(names)):
            if name in scores:
                low, high = results.intervals.get(when, {}).get(name, (scores[name], scores[name]))
                reach = [[max(0, scores[name] - low)], [max(0, high - scores[name])]]
                style: dict[str, Any] = {"error_kw": {"ecolor": "black", "capsize": 2}}
                panel.barh(row + shift, scores[name], 0.38, xerr=reach, color=color, **style)
        panel.scatter([], [], color=color, marker="s", label=when)
    panel.set_yticks(range(len(names)), list(reversed(names)))
    panel.set(xlim=(0, 101), xlabel="answers that the model gives (%); error bars: 95% interval over facts")
    panel.grid(visible=True, axis="x", alpha=0.3)
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    values = (f"{name} {_percent(results.before.get(name))} and {_percent(results.after[name])}" for name in names)
    told = f"Bars, before and after the edit: {'; '.join(values)}."
    return Drawing(figure, "scores", "Scores before and after", told)


def draw_attacks(results: Results) -> Drawing:
    """Scores of attacks on the unedited, the edited, and the gold model."""
    names = list(results.attacks)[::-1]
    figure = new_figure(7, 1.2 + ROW * len(names))
    panel = figure.subplots()
    for model, (shown, color, marker) in MARKS.items():
        rows = [row for row, name in enumerate(names) if model in results.attacks[name]]
        if rows:
            found = [100 * results.attacks[names[row]][model] for row in rows]
            panel.scatter(found, rows, color=color, marker=marker, s=60, label=shown, zorder=3)
    panel.set_yticks(range(len(names)), names)
    panel.set(xlim=(-2, 102), xlabel="knowledge recovered (%)")
    panel.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    told = "; ".join(f"{name} {_in_models(scores)}" for name, scores in results.attacks.items())
    return Drawing(figure, "attacks", "Knowledge recovered by attacks", f"One row an attack, one mark a model: {told}.")


def _in_models(scores: dict[str, float]) -> str:
    found = ((shown, scores[model]) for model, (shown, *_) in MARKS.items() if model in scores)
    return ", ".join(f"{shown} {_percent(100 * score)}" for shown, score in found)


def draw_spectrum(layer: int, shares: Sequence[float], threshold: float | None = None) -> Drawing:
    """Eigenvalues of a layer's second moment of retain keys, largest first.

    Args:
        layer: Index of the layer.
        shares: Eigenvalues as shares of their mean.
        threshold: Share below which directions count as free; ``None`` for a method without a threshold.
    """
    figure = new_figure(6, 3.5)
    panel = figure.subplots()
    panel.plot(range(1, len(shares) + 1), shares, color=AFTER)
    panel.set(yscale="log", xlabel="direction", ylabel="eigenvalue / mean")
    panel.grid(visible=True, alpha=0.3)
    told = f"A curve that falls from {shares[0]:.3g} to {shares[-1]:.3g} over {len(shares)} directions."
    if threshold is not None:
        free = sum(share < threshold for share in shares)
        panel.axhline(threshold, color=GOLD, linestyle="--", label=f"threshold: {free} directions are free")
        panel.legend(frameon=False)
        told += f" A line at {threshold:.3g}: {free} directions lie below it."
    title = f"How much of layer {layer} the retain keys use"
    return Drawing(figure, f"spectrum_layer_{layer}", title, told)


def _percent(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f}%"
