"""Editing one layer after the other: a trainable Delta that is restricted to the null space, or a closed form."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from zu_lightning.editing.closed_forms import Erase, ZeroUnlearnGD
from zu_lightning.editing.editor import LayerEditor
from zu_lightning.editing.layer_choice import LayerChoice, choose_layers
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.method import EditingMethod
from zu_lightning.editing.objective import LayerObjective, new_delta
from zu_lightning.lm.updates import apply_updates
from zu_lightning.modules.base import UnlearnModule
from zu_lightning.modules.state import EditKey
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

FAR = 1e-3
"""Optimality gap above which a user is told that descent has not converged."""


class EditingModule(UnlearnModule):
    """Edits one layer after the other; an epoch is a layer.

    A batch is the layer's :class:`LayerProblem`. With ``ZeroUnlearnGD(solve="descent")`` each step descends on the
    objective of arXiv 2605.18879, Eq. 10, in Delta behind the frozen null-space projector; the last one writes the
    update, before validation. With a closed form there is one step, which only measures the ``solution`` that the
    ``ClosedForm`` callback has set.

    Args:
        method: How layers are edited.
        layers: Layers to edit, lowest first, from 0; or ``auto`` for those that trial edits of other facts find best
            (:mod:`zu_lightning.editing.layer_choice`).
        evaluate_layers: Whether to evaluate the model after each layer, and not only after the last one.
        kwargs: Arguments of :class:`UnlearnModule`.
    """

    method: EditingMethod

    def __init__(
        self,
        method: EditingMethod = Erase(),
        layers: list[int] | Literal["auto"] = [0],  # noqa: B006 (read only, and what --print_config should show)
        evaluate_layers: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(method=method, layers=[] if layers == "auto" else layers, **kwargs)
        self.chooses_layers, self.evaluate_layers = layers == "auto", evaluate_layers
        self.layer_choice: LayerChoice | None = None
        """Trial edits, if they decide."""
        if not isinstance(method, EditingMethod):
            remedy = f"it does not edit layers: it needs a zu_lightning.{method.module.rpartition('.')[2]}."
            raise InputError("method", method.name, remedy)
        # What descent minimizes, and what is logged of a closed form.
        self.objective = method if isinstance(method, ZeroUnlearnGD) else ZeroUnlearnGD()
        self.editor: LayerEditor | None = None
        self.solution: LowRankUpdate | None = None
        self.converged = False
        self.unwritten: dict[int, LowRankUpdate] = {}
        """Updates of a run that was killed, until they are in the weights again."""

    @property
    def is_done(self) -> bool:
        """Whether all layers are edited."""
        return not self.run.layers_left(self.request.number, self.layers)

    def setup(self, stage: str) -> None:
        """Begin a fit afresh, with one epoch per layer."""
        super().setup(stage)
        if stage == "fit":
            self.editor, self.unwritten = None, {}
            self._set_epochs()

    def _set_epochs(self) -> None:
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            count = len(self.layers) or 1  # not chosen yet
            self.trainer.fit_loop.max_epochs = count
            self.trainer.check_val_every_n_epoch = 1 if self.evaluate_layers else count

    def choose_layers(self) -> None:
        """Try layers, if the choice is left to the module and not made yet."""
        if self.chooses_layers and self.layer_choice is None:
            choice = choose_layers(self.lm, self.request, self.method, self.neutral_target, self.monitor)
            self.layer_choice, self.layers = choice, list(choice.best.layers)
            if self.trainer.state.fn == "fit":
                self._set_epochs()

    def configure_model(self) -> None:
        """Load the language model, and make a Delta that fits all of its layers."""
        super().configure_model()
        if not hasattr(self, "delta"):
            parametrization = self.objective.release.parametrization
            self.delta = new_delta(parametrization, self.lm.weight(self.layers[0]), self.request.size)

    def training_batches(self) -> Iterable[LayerProblem]:
        """The problem of the next layer, once for each step until the module has solved it."""
        if self.editor is None:
            self.editor = LayerEditor(
                self.lm, self.request, self.layers, self.method, self.neutral_target, self.monitor,
                self.run.targets, self.unwritten,
            )  # fmt: skip
        if not self.editor.layers_left:  # a run that was killed after its last layer
            self.editor.restore()
            return []
        problem = self.editor.next_problem()
        self.run.targets = self.editor.targets
        return _Steps(problem, self)

    def on_train_batch_start(self, batch: LayerProblem, batch_idx: int) -> None:
        """Begin a layer with its first batch; by now the callback has set a closed form's solution."""
        if batch_idx > 0:
            return
        problem = self.objective.in_units(batch.at_mean_keys() if self.solution else batch)
        self.layer_objective = LayerObjective(self.lm.weight(batch.layer), problem, self.objective.weights)
        self.optimum: Tensor | None = None
        if self.solution is None:
            with self.monitor.timed("null_space"):
                projector = self.objective.null_space(problem)
            self.delta.begin(self.layer_objective.whole.keys, projector, self.objective.weights)
            self.optimizers().state.clear()  # type: ignore[union-attr]  # Adam's moments are another layer's
            self.optimum = self.layer_objective.terms(self.layer_objective.exact(projector)).summed().total

    def training_step(self, batch: LayerProblem, batch_idx: int) -> Tensor:
        """The objective at the present update; with a closed form it is measured and has no gradient."""
        own = self.layer_objective.terms(self.solution or self.delta())
        terms = own.summed()
        logged = {"zero": terms.zero, "forget": terms.forget, "ridge": terms.ridge}
        if self.optimum is not None:
            gap = logged["gap"] = (terms.total - self.optimum) / self.optimum
            logged["step_size"] = torch.tensor(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            # All processes have to agree on the last step.
            is_near = bool(gap <= self.objective.tolerance)
            self.converged = self.trainer.strategy.reduce_boolean_decision(is_near)
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=1)
        # Lightning steps with a gradient; that of a closed form is zero.
        return own.loss + 0.0 * self.delta.coordinates.sum()

    def on_train_batch_end(self, outputs: Any, batch: LayerProblem, batch_idx: int) -> None:
        """After the last step write the update into the weight: validation comes next and must see it."""
        if not self.trainer.is_last_batch or self.editor is None:
            return
        with torch.no_grad():
            update = self.solution or self.delta()
            _warn_if_far(self.layer_objective, update, self.optimum)
        edit = self.run.edits[EditKey(self.request.number, batch.layer)] = self.editor.write(batch, update)
        self.solution, self.converged = None, False
        self.log_dict({f"layer/{name}": value for name, value in vars(edit.scores).items()}, batch_size=1)

    def configure_optimizers(self) -> Optimizer:
        """The optimizer that suits Delta's parametrization."""
        return self.delta.optimizer(self.objective.learning_rate, self.objective.weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out Delta and its optimizer: every layer starts with fresh ones, and the state has the updates."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"], checkpoint["optimizer_states"] = {}, []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the run; in a fit its edits wait until the unedited model is no longer needed."""
        super().on_load_checkpoint(checkpoint)
        self.unwritten = self.run.updates_of(self.request.number)
        log.info("checkpoint: layers %s are edited", list(self.unwritten))
        if self.trainer.state.fn != "fit":
            apply_updates(self.lm, [self.unwritten])


def _warn_if_far(objective: LayerObjective, update: LowRankUpdate, optimum: Tensor | None) -> None:
    """Log a warning if descent, for which alone the optimum is known, ended far from it."""
    gap = 0.0 if optimum is None else (objective.terms(update).summed().total / optimum - 1).item()
    if not gap <= FAR:
        log.warning(
            "layer %d: descent ended with an optimality gap of %.2g: allow more steps, change the "
            "learning rate, or use a closed form.", objective.problem.layer, gap,
        )  # fmt: skip


class _Steps(IterableDataset[LayerProblem]):
    """A layer's problem, once for each step that the module wants to take.

    Lightning fetches a batch ahead, so that one more step follows the one that has converged.
    """

    def __init__(self, problem: LayerProblem, module: EditingModule) -> None:
        self.problem, self.module = problem, module

    def __iter__(self) -> Iterator[LayerProblem]:
        for _ in range(self.module.objective.steps if self.module.method.trains else 1):
            if self.module.converged:
                return
            yield self.problem
