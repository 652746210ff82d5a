"""The closed form as a one-step callback."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from zu_lightning import EditingModule, InputError, Rule
from zu_lightning.errors import require_positive


class ClosedForm(Callback):
    """Solve each layer exactly before its only step, which then measures the solution.

    Args:
        rule: What to solve. ``null`` leaves the module to its own method, such as gradient descent.
        rounds: How often facts that are still known are given more weight, and the last layer is solved again.
    """

    def __init__(self, rule: Rule | None = None, rounds: int = 0) -> None:
        require_positive("rounds", rounds, or_zero=True)
        self.rule, self.rounds = rule, rounds

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Tell the module that its layers are solved.

        Raises:
            InputError: The module does not edit layers.
        """
        if self.rule is None:
            return
        if not isinstance(pl_module, EditingModule):
            remedy = f"{type(pl_module).__name__} does not edit layers: set the rule to null."
            raise InputError("rule", type(self.rule).__name__, remedy)
        pl_module.rule, pl_module.rounds = self.rule, self.rounds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hand the module the solution for the layer of this batch."""
        if self.rule is not None and isinstance(pl_module, EditingModule):
            with pl_module.monitor.timed("solve"):
                pl_module.solution = pl_module.solved(batch)
