"""Checkpoints of a run, from which the same command with ``--ckpt_path last`` resumes it."""

from contextlib import nullcontext
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from zu_lightning import InputError, UnlearnModule, replacing
from zu_lightning.modules.outputs import checkpoint_path

CONTINUE = "The same command with --ckpt_path last continues it."
"""Advice after an early end, once there is a checkpoint."""


class Resume(Checkpoint):
    """Save a checkpoint when the first epoch begins and after each epoch, and delete it when all is done.

    What it holds is up to the module: an editing run is saved as targets and finished updates, never as weights, which
    are the unedited model's with the updates added again.
    """

    def __init__(self) -> None:
        self.has_saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin afresh."""
        self.has_saved = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save once the neutral targets, the most expensive part of an editing run, are known."""
        # Lightning (2.6) does not count an epoch from whose beginning it continues, and could not continue once more.
        epochs = trainer.fit_loop.epoch_progress.current
        epochs.ready = epochs.completed + 1
        if trainer.current_epoch == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each epoch, which is a layer in an editing run."""
        self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Delete the checkpoint, unless Lightning was told to stop early (``max_time``)."""
        is_done = pl_module.is_done if isinstance(pl_module, UnlearnModule) else True
        if trainer.is_global_zero and not trainer.fast_dev_run and is_done:  # type: ignore[attr-defined]
            checkpoint_path(trainer.default_root_dir).unlink(missing_ok=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Note how to resume, if there is a checkpoint of this run, or the one that it was resumed from."""
        path = checkpoint_path(trainer.default_root_dir)
        is_own = self.has_saved or (trainer.ckpt_path is not None and Path(trainer.ckpt_path) == path)
        if trainer.state.fn == "fit" and is_own and path.exists() and not isinstance(exception, InputError):
            exception.add_note(CONTINUE)

    def _save(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = checkpoint_path(trainer.default_root_dir)
        # All processes take part in saving, and have to name the same file.
        with replacing(path) if trainer.is_global_zero else nullcontext(path) as own:
            trainer.save_checkpoint(trainer.strategy.broadcast(own))
        self.has_saved = True
