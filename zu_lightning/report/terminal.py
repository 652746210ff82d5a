"""Results of a run as tables for a terminal."""

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from zu_lightning.evaluation.score_table import SCORES
from zu_lightning.report.results import Results

WIDTH = 100
"""Columns of the tables."""
PROBABILITY = "_probability"
"""Ends the names of mean probabilities of answers."""
OF_A_LAYER = "_layer_"
"""In the names of scores of single layers."""


def results_table(results: Results, *, color: bool = False) -> str:
    """Scores before and after with their intervals, attacks, and the verdict.

    Args:
        results: Of a run.
        color: Whether to use colors.
    """
    parts: list[RenderableType] = ["", _scores(results)]
    if results.attacks:
        parts += ["", _attacks(results)]
    if results.verdict:
        parts += ["", Text(results.verdict, style="bold")]
    console = Console(width=WIDTH, force_terminal=color, no_color=not color, color_system="standard" if color else None)
    with console.capture() as captured:
        console.print(Group(*parts), highlight=False)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def _scores(results: Results) -> Table:
    caption = "p: mean probability of the answers" if any(one.endswith(PROBABILITY) for one in results.after) else None
    table = Table("score", box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for head in ("before", "after", "95% interval after", *(("p before", "p after") if caption else ())):
        table.add_column(head, justify="right")
    for score in SCORES:
        if score.name in results.after:
            before, after = results.before.get(score.name), Text(_number(results.after[score.name]), style="bold")
            ends = results.intervals.get("after", {}).get(score.name)
            cells: list[str | Text] = [_number(before), after, _interval(ends, 1 if score.unit == "percent" else 2)]
            if caption and score.unit == "percent":
                name = score.name + PROBABILITY
                cells += [_number(results.before.get(name)), _number(results.after.get(name))]
            table.add_row(score.name, *cells)
    return table


def _attacks(results: Results) -> Table:
    """The scores of attacks, in percent; those of single layers are in the report and in metrics.json."""
    columns = ("base", "edited", "chance", "gold", "gap")
    shown = [name for name in columns if any(name in scores for scores in results.attacks.values())]
    caption = "gold: a model that was never trained on these facts; gap: after minus gold" if "gap" in shown else None
    table = Table("attack (percent)", box=box.SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for name in shown:
        table.add_column({"base": "before", "edited": "after"}.get(name, name), justify="right")
    if "gap" in shown:
        table.add_column("95% interval", justify="right")
    for name, scores in results.attacks.items():
        if OF_A_LAYER in name:
            continue
        missing = {"chance": ""}  # most attacks have no chance level
        cells = [f"{100 * scores[one]:.1f}" if one in scores else missing.get(one, "-") for one in shown]
        ends = (100 * scores["low"], 100 * scores["high"]) if "low" in scores else None
        table.add_row(name, *cells, *([_interval(ends)] if "gap" in shown else []))
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.{3 if abs(value) < 1 else 2 if abs(value) < 10 else 1}f}"


def _interval(ends: tuple[float, float] | None, digits: int = 1) -> str:
    return "" if ends is None else f"{ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
