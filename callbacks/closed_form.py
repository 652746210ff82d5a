"""The closed form as a one-step callback."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from zu_lightning import EditingModule


class ClosedForm(Callback):
    """Solve each layer exactly before its only step, which then measures the solution.

    A module whose method trains, such as ZeroUnlearn-GD by descent, is left to itself.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hand the module the solution for the layer of this batch."""
        if isinstance(pl_module, EditingModule) and pl_module.editor is not None and not pl_module.method.trains:
            pl_module.solution = pl_module.editor.solve(batch)
