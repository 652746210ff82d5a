"""The closed form as a one-step callback."""

from dataclasses import replace
from typing import Any

from lightning import Callback, LightningModule, Trainer

from zu_lightning import EditingModule, InputError, LayerProblem, LowRankUpdate, Rule
from zu_lightning.methods.rounds import solve_in_rounds
from zu_lightning.problem.prepare import phrasings_of


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
        if self.rule is not None and isinstance(pl_module, EditingModule):
            with pl_module.monitor.timed("solve"):
                pl_module.solution = self._solved(pl_module, self.rule, batch)

    def _solved(self, module: EditingModule, rule: Rule, problem: LayerProblem) -> LowRankUpdate:
        """The rule's solution of a layer; facts are weighed anew in the last one: before it no edit is whole."""
        assert module.preparation is not None
        phrasings = phrasings_of(module.request, module.preparation.targets.contexts, module.target_options)
        here = rule if problem.layer == module.layers[-1] else replace(rule, rounds=0)
        return solve_in_rounds(module.lm, here, problem, module.request.forget, phrasings)
