"""Editing one layer after the other: a trainable Delta that is restricted to the null space, or a closed form."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import IterableDataset

from zu_lightning.editing.editor import write_update
from zu_lightning.editing.latent_problem import LatentOptions
from zu_lightning.editing.latents import Target, TargetOptions
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.objective import LayerObjective, Parametrization, new_delta
from zu_lightning.editing.preparation import Preparation, layer_problem, prepare
from zu_lightning.editing.request import Request
from zu_lightning.editing.rules import Rule, ZeroUnlearnGD
from zu_lightning.lm.updates import apply_update
from zu_lightning.modules.base import UnlearnModule
from zu_lightning.modules.state import EditKey
from zu_lightning.runtime.errors import require_positive
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

FAR = 1e-3
"""Optimality gap above which a user is told that descent has not arrived."""


class EditingModule(UnlearnModule):
    """ZeroUnlearn-GD on one layer after the other; an epoch is a layer.

    A batch is the layer's :class:`LayerProblem`. Each step descends on the objective of arXiv 2605.18879, Eq. 10; the
    last one writes the update, before validation. With the ``ClosedForm`` callback, which sets ``rule`` and
    ``solution``, there is one step, which only measures the solution.

    Args:
        optimize_values: Whether the values V are optimized for the true answers (the paper) or observed at the layer.
        target: What edits aim at: the neutral answer (``word``), or predictions for unknown subjects (``reference``).
        latents: Options of the latent optimization.
        objective: Weights and null space of what gradient descent minimizes, and of what is logged.
        parametrization: What gradient descent trains: ``whitened`` coordinates, by plain descent, or the ``dense``
            matrix Delta by Adam, as in the authors' release.
        learning_rate: Step size; by default the longest safe one for ``whitened``, 0.001 for ``dense``.
        steps: Maximum number of gradient steps per layer.
        tolerance: Optimality gap, (objective - optimum) / optimum, at which a layer is done; one more step is taken.
        kwargs: Arguments of :class:`UnlearnModule`.
    """

    def __init__(
        self,
        optimize_values: bool = True,
        target: Target = "word",
        latents: LatentOptions = LatentOptions(),  # noqa: B008 (frozen)
        objective: ZeroUnlearnGD = ZeroUnlearnGD(),  # noqa: B008 (frozen)
        parametrization: Parametrization = "whitened",
        learning_rate: float | None = None,
        steps: int = 20,
        tolerance: float = 1e-10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.target_options = TargetOptions(self.neutral_target, optimize_values, latents, target)
        self.objective, self.parametrization, self.learning_rate = objective, parametrization, learning_rate
        self.steps, self.tolerance, self.teaches_neutral_target = steps, tolerance, target == "word"
        for name in ("steps", "learning_rate", "tolerance"):
            require_positive(name, getattr(self, name))
        self.rule: Rule | None = None
        """The closed form, if the ``ClosedForm`` callback has set one; ``solution`` is its update of this layer."""
        self.solution: LowRankUpdate | None = None
        self.converged = False
        self.preparation: Preparation | None = None
        self.unwritten: list[tuple[int, LowRankUpdate]] = []
        """Layers and updates of a run that was killed, until they are in the weights again."""

    @property
    def method(self) -> dict[str, object]:
        """Name and weights of the rule."""
        return {"name": type(self.rule).__name__, **asdict(self.rule)} if self.rule else {"name": "gradient descent"}

    @property
    def is_done(self) -> bool:
        """Whether all layers are edited."""
        return not self.layers_left

    @property
    def layers_left(self) -> list[int]:
        """Layers that are not edited yet, the next one first."""
        return self.run.layers_left(self.request.number, self.layers)

    def settings(self) -> dict[str, object]:
        """Everything in this module that decides which weights a run ends with, by parameter."""
        descent = (self.objective, self.parametrization, self.learning_rate, self.steps, self.tolerance)
        of_descent = {"objective, or another option of gradient descent": None if self.rule else descent}
        return super().settings() | {"rule": self.rule} | vars(self.target_options) | of_descent

    def setup(self, stage: str) -> None:
        """Begin a fit afresh, and make it as long as there are layers."""
        super().setup(stage)
        if stage == "fit":
            self.preparation = None
            if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.trainer.fit_loop.max_epochs = len(self.layers)

    def configure_model(self) -> None:
        """Load the language model, and make a Delta that fits all of its layers."""
        super().configure_model()
        self.target_options = replace(self.target_options, neutral_target=self.neutral_target)
        if not hasattr(self, "delta"):
            self.delta = new_delta(self.parametrization, self.lm.weight(self.layers[0]), self.request.size)

    def training_batches(self, request: Request) -> Iterable[LayerProblem]:
        """The problem of the layer whose turn it is, once for each step until the module has solved it."""
        if not self.layers_left:  # a run that was killed after its last layer
            self.restore_edits()
            return []
        return _Steps(_next_problem(self, request), self)

    def on_train_batch_start(self, batch: LayerProblem, batch_idx: int) -> None:
        """Begin a layer with its first batch; by now the callback may have set its solution."""
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
            self.converged = self.trainer.strategy.reduce_boolean_decision(bool(gap <= self.tolerance))
        self.log_dict({f"train/{name}": value for name, value in logged.items()}, batch_size=1)
        return own.loss + 0.0 * self.delta.coordinates.sum()

    def on_train_batch_end(self, outputs: Any, batch: LayerProblem, batch_idx: int) -> None:
        """After the last step write the update into the weight: validation comes next and must see it."""
        if not self.trainer.is_last_batch:
            return
        with torch.no_grad(), self.monitor.timed("apply"):
            update = self.solution or self.delta()
            _warn_if_far(self.layer_objective, update, self.optimum)
            edit = write_update(self.lm, batch, update)
        self.run.edits[EditKey(self.request.number, batch.layer)] = edit
        self.solution, self.converged = None, False
        self.log_dict({f"layer/{name}": value for name, value in vars(edit.scores).items()}, batch_size=1)

    def configure_optimizers(self) -> Optimizer:
        """The optimizer that suits Delta's parametrization."""
        return self.delta.optimizer(self.learning_rate, self.objective.weights)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out Delta and its optimizer: every layer starts with fresh ones, and the state has the updates."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["state_dict"], checkpoint["optimizer_states"] = {}, []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the run; in a fit its edits wait until the unedited model is no longer needed."""
        super().on_load_checkpoint(checkpoint)
        self.unwritten = list(self.run.updates_of(self.request.number).items())
        log.info("checkpoint: layers %s are edited", [layer for layer, _ in self.unwritten])
        if self.trainer.state.fn != "fit":
            self.restore_edits()

    def restore_edits(self) -> None:
        """Write the edits of a run that was killed into the weights again."""
        for layer, update in self.unwritten:
            apply_update(self.lm, layer, update)
        self.unwritten = []


def _next_problem(module: EditingModule, request: Request) -> LayerProblem:
    """The problem of the layer whose turn it is; what the unedited model has to tell is read first, and once."""
    left, options = module.layers_left, module.target_options
    if module.preparation is None:
        module.preparation = prepare(module.lm, request, left, options, module.run.targets, module.monitor)
        module.run.targets = module.preparation.targets
    module.restore_edits()
    return layer_problem(module.lm, request, left[0], module.layers, module.preparation, options, module.monitor)


def _warn_if_far(objective: LayerObjective, update: LowRankUpdate, optimum: Tensor | None) -> None:
    """Log a warning if descent, of which alone the optimum is known, ended far from it."""
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
        for _ in range(1 if self.module.rule else self.module.steps):
            if self.module.converged:
                return
            yield self.problem
