"""The folder of a run, and its pictures."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from zu_lightning.modules.base import UnlearnModule
from zu_lightning.report.pictures import Drawing, save_picture
from zu_lightning.runtime.errors import InputError

OF_LOGGERS = ("events.out.tfevents.", "hparams.yaml")
"""Prefixes of the files that Lightning's loggers write when a run begins."""


def check_writable(folder: str) -> None:
    """Make a folder, and refuse one that cannot be written to.

    Raises:
        InputError: It cannot be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"it cannot be written to ({error.strerror}): choose another folder."
        raise InputError("default_root_dir", folder, remedy) from error


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
