"""The closed form as a one-step callback."""

from typing import Any

from lightning import Callback, LightningModule, Trainer

from zu_lightning import LayerProblem, Rule, UnlearnModule, timed


def chosen_rule(trainer: Trainer) -> Rule | None:
    """The closed form of a run; ``None`` for gradient descent."""
    return next((c.rule for c in trainer.callbacks if isinstance(c, ClosedForm)), None)  # type: ignore[attr-defined]


class ClosedForm(Callback):
    """Solve each layer exactly before its only step, which then measures the solution.

    Args:
        rule: What to solve. ``null`` leaves the module to its gradient descent.
    """

    def __init__(self, rule: Rule | None = None) -> None:
        self.rule = rule

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """One step a layer is enough."""
        if self.rule is not None and isinstance(pl_module, UnlearnModule):
            pl_module.steps = 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hand the module the solution for the layer of this batch."""
        if self.rule is None or not isinstance(pl_module, UnlearnModule) or not isinstance(batch, LayerProblem):
            return
        with timed(pl_module.seconds, "solve"):
            pl_module.update = self.rule(pl_module.lm.weight(batch.layer), batch)
