"""Results of a run in TensorBoard: layout, scalars, completions, and hyperparameters."""

from collections.abc import Sequence
from typing import Any

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zu_lightning.evaluation.score_table import SCORES
from zu_lightning.report.results import Results

COMPARED = ("efficacy", "generalization", "specificity", "retain")
"""Scores by which the tab for hyperparameters compares runs."""


def _before_after(concerns: str) -> list[Any]:
    names = [score.name for score in SCORES if score.unit == "percent" and score.concerns == concerns]
    return ["Multiline", [f"before_after/({'|'.join(names)})$"]]


LAYOUT: dict[str, dict[str, list[Any]]] = {
    "Before (0) and after (1)": {
        "to forget": _before_after("forget"),
        "to keep": _before_after("keep"),
        "perplexity": ["Multiline", ["before_after/perplexity$"]],
    },
    "Attacks: base (0), edited (1), gold (2)": {"knowledge recovered": ["Multiline", ["attacks/.*"]]},
    "Layers": {
        "distance to the targets": ["Multiline", ["layer/residual_.*"]],
        "size of the update": ["Multiline", ["layer/relative_norm"]],
        "objective, or a gradient method's loss": ["Multiline", ["train/(zero|forget|ridge|loss)$"]],
        "optimality gap of gradient descent": ["Multiline", ["train/gap$"]],
        "spectrum of the retain keys (log10)": ["Multiline", ["spectrum/.*"]],
    },
}
"""Layout of the tab for custom scalars: sections, charts, and patterns of the scalars in each chart."""


def show_results(trainer: Trainer, results: Results) -> None:
    """Log all results."""
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
    """Method and its options, model, layers, draw, and number of facts."""
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
