"""Looking at the finished model, even if its training ended in an earlier part of the run."""

from lightning import Callback, LightningModule, Trainer

from zu_lightning import UnlearnModule


class Afterwards(Callback):
    """A callback whose ``on_train_end`` looks at the finished model."""


class SkippedTraining(Callback):
    """Has the finished model looked at when a run is continued that was killed after its last epoch.

    Lightning (2.6) then skips training, and with it ``on_train_end``. This has to be the first callback: others need at
    the end of a fit what is found here.
    """

    def __init__(self) -> None:
        self.is_skipped = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing is trained yet."""
        self.is_skipped = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is not skipped."""
        self.is_skipped = False

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do what Lightning has left out."""
        if self.is_skipped and isinstance(pl_module, UnlearnModule) and pl_module.is_done:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Afterwards):
                    callback.on_train_end(trainer, pl_module)
