"""When a run is saved, so that the same command with ``--ckpt_path last`` continues it after it was killed."""

from contextlib import nullcontext
from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from zu_lightning import UnlearnModule, replacing


def checkpoint_path(default_root_dir: str) -> Path:
    """Where runs under a folder keep the checkpoint to continue from."""
    return Path(default_root_dir) / "checkpoints" / "last.ckpt"


class Resume(Checkpoint):
    """Save a checkpoint when the first epoch begins and after each epoch, and delete it when all is done.

    What it holds is up to the module: an editing run is saved as targets and finished updates, never as weights, which
    are the unedited model's with the updates added again.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The neutral targets, the most expensive part of an editing run, are known now."""
        if trainer.current_epoch == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch, which is a layer in an editing run, is done."""
        self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to continue with, unless Lightning was told to stop early (``max_time``)."""
        is_done = pl_module.is_done if isinstance(pl_module, UnlearnModule) else True
        if trainer.is_global_zero and not trainer.fast_dev_run and is_done:  # type: ignore[attr-defined]
            checkpoint_path(trainer.default_root_dir).unlink(missing_ok=True)

    @staticmethod
    def _save(trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = checkpoint_path(trainer.default_root_dir)
        # All processes take part in saving, and have to name the same file.
        with replacing(path) if trainer.is_global_zero else nullcontext(path) as own:
            trainer.save_checkpoint(trainer.strategy.broadcast(own))
