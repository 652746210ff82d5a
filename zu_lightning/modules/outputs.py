"""Outputs of a run: its folder, pictures, and TensorBoard."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zu_lightning.evaluation.score_table import SCORES
from zu_lightning.modules.base import UnlearnModule
from zu_lightning.report.pictures import Drawing, save_picture
from zu_lightning.report.results import Results
from zu_lightning.runtime.errors import InputError

COMPARED = ("efficacy", "generalization", "specificity", "retain")
"""Scores by which the tab for hyperparameters compares runs."""


def _before_after(concerns: str) -> list[Any]:
    names = [score.name for score in SCORES if score.unit == "percent" and score.concerns == concerns]
    return ["Multiline", [f"before_after/({'|'.join(names)})$"]]


LAYOUT: dict[str, dict[str, list[Any]]] = {
    "Before (0) and after (1)": {
        "to forget": _before_after("forget"),
        "to keep": _before_after("keep"),
        "answers against those for made-up names (nats)": ["Multiline", ["before_after/leak_nats"]],
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

OF_LOGGERS = ("events.out.tfevents.", "hparams.yaml")
"""Prefixes of the files that Lightning's loggers write when a run begins."""


def checkpoint_path(default_root_dir: str) -> Path:
    """Path of the checkpoint of the runs under a folder."""
    return Path(default_root_dir) / "checkpoints" / "last.ckpt"


def check_writable(folder: str, parameter: str = "default_root_dir") -> None:
    """Make a folder, and refuse one that cannot be written to.

    Args:
        folder: The folder.
        parameter: Name of the option that gives it, for messages.

    Raises:
        InputError: It cannot be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"it cannot be written to ({error.strerror}): choose another folder."
        raise InputError(parameter, folder, remedy) from error


def run_folder(trainer: Trainer) -> Path | None:
    """The run's folder; ``None`` if this process should not write: on other ranks, and in a fast_dev_run.

    To be called on all ranks, because Lightning broadcasts the folder's name.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return folder


def remove_refused(trainer: Trainer, config: str) -> None:
    """Remove the folder that a logger made for a run whose input was refused, if nothing else is in it.

    Args:
        trainer: Its trainer, which must not have taken a step.
        config: Name of the file with the run's configuration, which goes, too.
    """
    folder = run_folder(trainer)
    if folder is None or folder == Path(trainer.default_root_dir) or trainer.global_step > 0:
        return
    for logger in trainer.loggers:
        logger.finalize("failed")  # so that nothing is written any more
    if all(path.name.startswith((config, *OF_LOGGERS)) for path in folder.iterdir()):
        shutil.rmtree(folder)


def unlearn_module(module: LightningModule) -> UnlearnModule:
    """The module, if it is that of an unlearning run.

    Raises:
        InputError: It is another one.
    """
    if not isinstance(module, UnlearnModule):
        remedy = "a callback in trainer.callbacks works with a zu_lightning.UnlearnModule: remove one of the two."
        raise InputError("model", type(module).__name__, remedy)
    return module


def boards(trainer: Trainer) -> Iterator[Any]:
    """The writers of this process's TensorBoard loggers."""
    return (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def show_picture(trainer: Trainer, folder: Path, drawing: Drawing) -> Path:
    """Save a picture in the run's folder, and show it in TensorBoard; the path of the PNG."""
    for board in boards(trainer):
        board.add_figure(f"pictures/{drawing.name}", drawing.figure, close=False)
    return save_picture(drawing, folder)


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
