"""Progress bars with units."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from zu_lightning import EditingModule


class Progress(TQDMProgressBar):
    """Lightning's progress bars, in the style of :class:`zu_lightning.runtime.timing.Monitor`."""

    sanity_check_description = "Evaluation before"
    validation_description = "Evaluation"
    test_description = "Evaluation"
    predict_description = "Completions"

    def init_sanity_tqdm(self) -> Tqdm:
        """Count batches."""
        return _counting(super().init_sanity_tqdm(), "batches")

    def init_validation_tqdm(self) -> Tqdm:
        """Count batches."""
        return _counting(super().init_validation_tqdm(), "batches")

    def init_test_tqdm(self) -> Tqdm:
        """Count batches."""
        return _counting(super().init_test_tqdm(), "batches")

    def init_predict_tqdm(self) -> Tqdm:
        """Count batches."""
        return _counting(super().init_predict_tqdm(), "batches")

    def init_train_tqdm(self) -> Tqdm:
        """Count steps."""
        return _counting(super().init_train_tqdm(), "steps")

    def on_train_epoch_start(self, trainer: Trainer, *rest: Any) -> None:
        """Show the layer: an editing run has one epoch for each."""
        super().on_train_epoch_start(trainer, *rest)
        module, epoch = trainer.lightning_module, trainer.current_epoch
        if isinstance(module, EditingModule) and epoch < len(module.layers):
            self.train_progress_bar.set_description(f"Layer {module.layers[epoch]}")

    def on_validation_batch_start(self, trainer: Trainer, *rest: Any) -> None:
        """Leave out the number of the only data loader."""
        super().on_validation_batch_start(trainer, *rest)
        before = trainer.sanity_checking
        self.val_progress_bar.set_description(self.sanity_check_description if before else self.validation_description)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Leave out the number of the run's folder."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


def _counting(bar: Tqdm, unit: str) -> Tqdm:
    bar.unit = f" {unit}"
    return bar
