"""Pictures of how an edit moves representations: a panel per edited layer of a run, or per method of a comparison."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zu_lightning.report.pictures import Drawing, new_figure
from zu_lightning.tracing.representations import GROUPS, LayerRepresentations, Plane, RepresentationMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "representations"
"""Name of a run's picture."""

LOOKS: dict[str, tuple[str, str]] = {
    "forget": ("#d55e00", "o"),
    "kept": ("#0072b2", "s"),
    "unseen": ("#009e73", "^"),
}
"""Color and marker of each group; colorblind-safe (Okabe and Ito)."""

COLUMNS = 3
"""Maximum number of panels per row."""


def draw_run(found: RepresentationMap) -> Drawing:
    """A panel per edited layer, in the plane of its own principal components before and after together."""
    figure, panels = _panels(len(found.layers))
    for panel, at in zip(panels, found.layers, strict=True):
        _scatter(panel, at.pooled, found.groups)
        panel.set_title(f"layer {at.layer}")
        panel.set(**_labels(at.pooled))
    _legend(figure, panels[0])
    said = "; ".join(f"layer {at.layer}, {describe(at)}" for at in found.layers)
    about = f"Outputs of the edited projections at the facts' lookup tokens, on two principal components. {said}."
    return Drawing(figure, NAME, "Representations before and after", about)


def draw_methods(found: Mapping[str, RepresentationMap], layer: int, draw: str) -> Drawing:
    """A panel per method, all on the same axes: the plane of the unedited model's principal components.

    Args:
        found: Representations by method, of the same model and the same draw.
        layer: Which layer; methods that have not edited it are left out.
        draw: What the runs have in common, such as ``demo, 10 facts, seed 1``.
    """
    planes = {name: (at, each.groups) for name, each in found.items() for at in each.layers if at.layer == layer}
    figure, panels = _panels(len(planes), share=True)
    for i, (panel, (name, (at, groups))) in enumerate(zip(panels, planes.items(), strict=True)):
        _scatter(panel, at.base, groups)
        labels = _labels(at.base)
        panel.set_title(name)
        panel.set(ylabel=labels["ylabel"] if i % COLUMNS == 0 else "")
        panel.set(xlabel=labels["xlabel"] if i + COLUMNS >= len(planes) else "")
    # Methods with protected facts show more groups than others.
    _legend(figure, max(panels, key=lambda panel: len(panel.collections)))
    title = f"Representations at layer {layer}: {draw}"
    figure.suptitle(title)
    said = "; ".join(f"{name}, {describe(at)}" for name, (at, _) in planes.items())
    about = f"A panel per method, on two principal components of the unedited model. {said}."
    return Drawing(figure, f"{NAME} {draw} layer {layer}".replace(",", "").replace(" ", "-"), title, about)


def describe(at: LayerRepresentations) -> str:
    """How far each group has moved, in words."""
    return ", ".join(
        f"{group}: facts moved {_shown(shift.moved)}, their mean {_shown(shift.distance)} standard deviations, "
        f"AUC {_shown(shift.auc)}"
        for group, shift in at.shifts.items()
    )


def _shown(value: float | None) -> str:
    return "(undefined)" if value is None else f"{value:.2f}"


def _panels(count: int, *, share: bool = False) -> "tuple[Figure, list[Axes]]":
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = new_figure(3.6 * columns + 1.6, 3.3 * rows + 0.3)
    grid = figure.subplots(rows, columns, sharex=share, sharey=share, squeeze=False)
    panels = list(grid.flat)
    for empty in panels[count:]:
        empty.remove()
    return figure, panels[:count]


def _scatter(panel: "Axes", plane: Plane, groups: Iterable[str]) -> None:
    """Hollow before, filled after, and a line between them; the forgotten facts on top."""
    names = list(groups)
    for group in reversed(GROUPS):
        rows = [i for i, name in enumerate(names) if name == group]
        if not rows:
            continue
        color, marker = LOOKS[group]
        for i in rows:
            panel.plot(*zip(plane.before[i], plane.after[i], strict=True), color=color, linewidth=0.6, alpha=0.5)
        style: dict[str, Any] = {"marker": marker, "s": 26, "linewidths": 0.9, "edgecolors": color, "alpha": 0.8}
        for points, when, fill in ((plane.before, "before", "none"), (plane.after, "after", color)):
            x, y = zip(*(points[i] for i in rows), strict=True)
            panel.scatter(x, y, facecolors=fill, label=f"{group}, {when}", **style)
    panel.grid(visible=True, alpha=0.25)


def _labels(plane: Plane) -> dict[str, str]:
    first, second = (f"component {i} ({100 * share:.0f}%)" for i, share in enumerate(plane.explained, 1))
    return {"xlabel": first, "ylabel": second}


def _legend(figure: "Figure", panel: "Axes") -> None:
    """Show the groups in their order, not in drawing order."""
    by_label = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    labels = [label for group in GROUPS for label in by_label if label.startswith(f"{group},")]
    figure.legend([by_label[label] for label in labels], labels, loc="outside right center", frameon=False)
