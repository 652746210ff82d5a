"""TensorBoard as a dashboard: what one sees without a click, and what compares runs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zu_lightning import Results
from zu_lightning.report.pictures import Drawing, save_picture

COMPARED = ("efficacy", "generalization", "specificity", "retain")
"""Scores by which the tab for hyperparameters compares runs."""

LAYOUT = {
    "Before (0) and after (1)": {
        "to forget": ["Multiline", ["before_after/(efficacy|generalization|multi_hop)$"]],
        "to keep": ["Multiline", ["before_after/(specificity|retain|same_subject|protected)$"]],
        "perplexity": ["Multiline", ["before_after/perplexity$"]],
    },
    "Attacks: base (0), edited (1), gold (2)": {"knowledge found": ["Multiline", ["attacks/.*"]]},
    "Layers": {
        "distance to the targets": ["Multiline", ["layer/residual_.*"]],
        "size of the update": ["Multiline", ["layer/relative_norm"]],
        "objective, or a gradient method's loss": ["Multiline", ["train/(zero|forget|ridge|loss)$"]],
        "optimality gap of gradient descent": ["Multiline", ["train/gap$"]],
        "spectrum of the retain keys (log10)": ["Multiline", ["spectrum/.*"]],
    },
}
"""What the tab for custom scalars shows: sections, charts, and patterns of the scalars in each chart."""


def boards(trainer: Trainer) -> Iterator[Any]:
    """The writers of this process's TensorBoard loggers."""
    return (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def show_picture(trainer: Trainer, folder: Path, drawing: Drawing) -> Path:
    """Save a picture in the run's folder, and show it in TensorBoard; the path of the PNG."""
    for board in boards(trainer):
        board.add_figure(f"pictures/{drawing.name}", drawing.figure, close=False)
    return save_picture(drawing, folder)


def show_results(trainer: Trainer, results: Results) -> None:
    """Everything that was measured: scalars in a layout, completions, and what compares runs."""
    for logger in trainer.loggers:
        logger.log_metrics({f"seconds/{phase}": seconds for phase, seconds in results.seconds.items()}, step=0)
        for step, scores in enumerate((results.before, results.after)):
            logger.log_metrics({f"before_after/{name}": value for name, value in scores.items()}, step=step)
        for step, model in enumerate(("base", "edited", "gold")):
            found = {f"attacks/{name}": scores[model] for name, scores in results.attacks.items() if model in scores}
            logger.log_metrics(found, step=step)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_custom_scalars(LAYOUT)
            logger.experiment.add_text("completions", _completions_table(results))
            if results.verdict:
                logger.experiment.add_text("verdict", results.verdict)
            metrics = {f"compared/{name}": results.after[name] for name in COMPARED if name in results.after}
            logger.log_hyperparams(_hyperparameters(results), metrics)
            logger.save()


def _hyperparameters(results: Results) -> dict[str, Any]:
    """What tells runs apart: method and its options, model, layers, draw, and number of facts."""
    plain = {name: value for name, value in results.method.items() if isinstance(value, bool | int | float | str)}
    draw, layers = results.identity.get("draw", ""), ", ".join(map(str, results.layers))
    named = {"model": results.model, "layers": layers, "facts": results.facts, "draw": draw}
    return named | {f"method/{name}": value for name, value in plain.items()}


def _completions_table(results: Results) -> str:
    """Sample completions, before and after, in Markdown."""
    lines = ["| prompt | before | after |", "|---|---|---|"]
    return "\n".join([*lines, *(_row((one.prompt, one.before or "", one.after)) for one in results.completions)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
