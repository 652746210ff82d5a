"""Where a run writes, and for which modules."""

import shutil
import tempfile
from pathlib import Path

from lightning import LightningModule, Trainer

from zu_lightning import InputError, UnlearnModule

OF_LOGGERS = ("events.out.tfevents.", "hparams.yaml")
"""What the names of the files begin with that Lightning's loggers write into the folder of a run that begins."""


def check_writable(folder: str) -> None:
    """Make a folder, and refuse one that cannot be written to.

    Raises:
        InputError: See above.
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


def sees_unedited_model(trainer: Trainer) -> bool:
    """Whether this is Lightning's sanity check of a run that begins: one that continues may have trained weights."""
    return trainer.state.fn == "fit" and trainer.sanity_checking and trainer.ckpt_path is None


def unlearn_module(module: LightningModule) -> UnlearnModule:
    """The module of an unlearning run.

    Raises:
        InputError: It does something else.
    """
    if not isinstance(module, UnlearnModule):
        remedy = "a callback in trainer.callbacks works with a zu_lightning.UnlearnModule: remove one of the two."
        raise InputError("model", type(module).__name__, remedy)
    return module
