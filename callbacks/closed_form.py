"""The closed form as a one-step callback."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from zu_lightning import EditingModule, InputError, Rule
from zu_lightning.editing.reweighting import solve_layer


class ClosedForm(Callback):
    """Solve each layer exactly before its only step, which then measures the solution.

    Args:
        rule: What to solve. ``null`` leaves the module to its own method, such as gradient descent.
    """

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule

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
        pl_module.rule = self.rule

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hand the module the solution for the layer of this batch."""
        if self.rule is not None and isinstance(pl_module, EditingModule) and pl_module.preparation is not None:
            contexts, options = pl_module.preparation.targets.contexts, pl_module.target_options
            with pl_module.monitor.timed("solve"):
                pl_module.solution = solve_layer(
                    pl_module.lm, self.rule, batch, pl_module.request, pl_module.layers, contexts, options
                )
