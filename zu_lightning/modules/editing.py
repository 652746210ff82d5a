"""The LightningModule: a frozen language model, a trainable Delta for one layer at a time, and its evaluation."""

import logging
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from zu_lightning import solvers
from zu_lightning.distributed import check_identical
from zu_lightning.errors import InputError
from zu_lightning.evaluation.evaluate import EvaluationBatch, compute_metrics, evaluation_metrics, update_metric
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM, check_layers, check_model
from zu_lightning.lm.tiny import write_tiny_model
from zu_lightning.methods.objective import Delta, DenseDelta, Objective, WhitenedDelta, step_size
from zu_lightning.methods.rules import ZeroUnlearnGD
from zu_lightning.problem.keys import LayerProblem
from zu_lightning.problem.latents import LatentOptions
from zu_lightning.solvers import LowRankUpdate
from zu_lightning.timing import timed

log = logging.getLogger(__name__)

FAR = 1e-3
"""Optimality gap above which a user is told that descent has not arrived."""

COMPLETION_TOKENS = 12
"""Tokens of a completion that people look at."""


class UnlearnModule(LightningModule):
    """ZeroUnlearn-GD on one layer after the other; an epoch is a layer.

    The data module yields the layer's :class:`LayerProblem`. Each step descends on the objective of
    arXiv 2605.18879, Eq. 10; after the last step of an epoch the update is written into the weight, before validation
    looks at it. The ``ClosedForm`` callback replaces the descent: it sets ``update``, and the one step that follows
    only measures it.

    Args:
        model_name_or_path: Hub id or directory of a causal language model.
        layers: Layers to edit, lowest first, from 0.
        dtype: How the weights are kept: ``auto``, ``float32``, ``bfloat16`` or ``float16``. Solves are in float64.
        tiny: Whether to take a tiny random model of the same architecture instead, which needs no download: to try
            the rest of a configuration.
        load_options: More arguments of ``from_pretrained``, such as ``{device_map: auto}`` for a model that is larger
            than one device (in one process), or ``{revision: ...}``.
        neutral_target: What the model should answer instead.
        optimise_values: Whether the original-knowledge values V are optimised for the true answers (the paper) or
            observed at the layer (cheaper, and much the same).
        latents: Options of the latent optimisation.
        objective: What gradient descent minimises, and what is logged; a closed form has its own weights in
            ``closed_form.rule``.
        delta: What gradient descent trains: ``whitened`` coordinates, by plain descent, or ``dense``, the matrix Delta
            by Adam, as in the paper.
        learning_rate: Step size. By default the longest that cannot overshoot for ``whitened``, 0.001 for ``dense``.
        steps: Most gradient steps a layer.
        tolerance: Optimality gap, (objective - optimum) / optimum, at which a layer is done; one more step, which
            Lightning has fetched by then, is still taken.
    """

    def __init__(
        self,
        model_name_or_path: str = "data/demo/model",
        layers: list[int] = [0],  # noqa: B006 (read only, and what --print_config should show)
        dtype: str = "auto",
        tiny: bool = False,
        load_options: dict[str, Any] | None = None,
        neutral_target: str = "unknown",
        optimise_values: bool = True,
        latents: LatentOptions = LatentOptions(),  # noqa: B008 (frozen)
        objective: ZeroUnlearnGD = ZeroUnlearnGD(),  # noqa: B008 (frozen)
        delta: Literal["whitened", "dense"] = "whitened",
        learning_rate: float | None = None,
        steps: int = 20,
        tolerance: float = 1e-10,
    ) -> None:
        super().__init__()
        self.model_name_or_path, self.layers, self.dtype_name = model_name_or_path, layers, dtype
        self.tiny, self.load_options = tiny, load_options or {}
        self.neutral_target, self.optimise_values, self.latents = neutral_target, optimise_values, latents
        self.objective, self.parametrisation, self.learning_rate = objective, delta, learning_rate
        self.steps, self.tolerance = steps, tolerance
        self.strict_loading = False  # checkpoints hold no weights, see callbacks/resume.py
        self.metrics = evaluation_metrics()
        self.figures: dict[str, float] = {}
        """Figures of the latest evaluation."""
        self.layer_figures: dict[int, dict[str, float]] = {}
        """For each edited layer, size, rank and effect of its update."""
        self.seconds: dict[str, float] = {}
        """Seconds by phase."""
        self.update: LowRankUpdate | None = None
        """The closed-form solution of the present layer, if a callback has set one."""
        self.updates_to_restore: dict[int, LowRankUpdate] = {}
        """Updates of a run that goes on, until :meth:`restore_updates`."""
        self.converged = False
        """Whether the present layer's gap is below the tolerance."""

    @property
    def layers_left(self) -> list[int]:
        """Layers not edited yet, the next one first."""
        return [layer for layer in self.layers if layer not in self.layer_figures]

    def setup(self, stage: str) -> None:
        """Check what can be checked before weights are loaded; make the fit as long as there are layers."""
        depth = (
            max(self.layers, default=0) + 1 if self.tiny else check_model(self.model_name_or_path, **self.load_options)
        )
        check_layers(self.layers, depth)
        if "device_map" in self.load_options and self.trainer.world_size > 1:
            raise InputError(
                "model.load_options has a device_map, which spreads one model over all devices: run one process "
                "(--trainer.devices 1), or leave the device_map out."
            )
        if self.steps < 1:
            raise InputError(f"model.steps must be at least 1, but is {self.steps}.")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise InputError(f"model.learning_rate must be positive, but is {self.learning_rate}.")
        if not self.neutral_target.strip():
            raise InputError("model.neutral_target is empty: say what the model should answer instead.")
        if stage == "fit":
            self.layer_figures = {}
            if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                self.trainer.fit_loop.max_epochs = len(self.layers)

    def configure_model(self) -> None:
        """Load the language model. It is no submodule: neither checkpoints nor DDP need to know its weights."""
        if hasattr(self, "lm"):
            return
        with timed(self.seconds, "load"):
            source = self.model_name_or_path
            if self.tiny:
                self._tiny_folder = TemporaryDirectory()  # until the module goes: the export compares with the base
                source = self.trainer.strategy.broadcast(self._tiny_folder.name)
                if self.trainer.is_global_zero:  # transformers saves from the first process only
                    write_tiny_model(self.model_name_or_path, max(self.layers) + 2, source)
                self.trainer.strategy.barrier("tiny model")
            lm = EditableLM.from_pretrained(source, dtype=self.dtype_name, **self.load_options)
            device = self.trainer.strategy.root_device
            self.lm = lm.to(device)
        if lm.device != device:
            raise InputError(
                f"model.load_options puts the model on {lm.device}, but trainer.accelerator and trainer.devices choose "
                f"{device}: make them agree."
            )
        d_out, d_in = self.lm.weight(self.layers[0]).shape
        facts = len(self.trainer.datamodule.forget)  # type: ignore[attr-defined]
        self.delta: Delta = (
            WhitenedDelta(d_out, facts) if self.parametrisation == "whitened" else DenseDelta(d_out, d_in)
        )

    def restore_updates(self) -> None:
        """Write the updates of a run that goes on, once nothing more has to be read from the unedited model."""
        for layer, update in self.updates_to_restore.items():
            self.lm.apply(layer, update)
        self.updates_to_restore = {}

    def on_train_batch_start(self, batch: LayerProblem, batch_idx: int) -> None:
        """Take up a layer with its first batch; by now a callback may have set its solution."""
        if batch_idx > 0:
            return
        goal, problem = self.objective, self.objective.in_units(batch)
        self.weight = self.lm.weight(problem.layer)
        self.loss = Objective(
            self.weight,
            problem.keys,
            problem.residuals,
            problem.values,
            zero_weight=goal.zero_weight,
            forget_weight=goal.forget_weight,
            ridge=goal.ridge,
        )
        self.optimum: Tensor | None = None
        if self.update is None:
            with timed(self.seconds, "null_space"):
                projector = goal.null_space(problem)
            self.delta.begin(problem.keys, projector, forget_weight=goal.forget_weight, ridge=goal.ridge)
            self.optimizers().state.clear()  # type: ignore[union-attr]  # Adam's moments are another layer's
            self.optimum = self.loss.terms(self.loss.exact(projector)).total

    def training_step(self, batch: LayerProblem, batch_idx: int) -> Tensor:
        """The objective at the present update; with a closed form it is measured and has no gradient."""
        terms = self.loss.terms(self.update or self.delta())
        figures = {"zero": terms.zero, "forget": terms.forget, "ridge": terms.ridge}
        if self.optimum is not None:
            figures["gap"] = (terms.total - self.optimum) / self.optimum
            figures["step_size"] = torch.tensor(self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
            # All processes have to agree on the last step.
            self.converged = self.trainer.strategy.reduce_boolean_decision(bool(figures["gap"] <= self.tolerance))
        self.log_dict({f"train/{name}": value.detach() for name, value in figures.items()}, batch_size=1)
        return terms.total + 0.0 * self.delta.coordinates.sum()

    def on_train_batch_end(self, outputs: Any, batch: LayerProblem, batch_idx: int) -> None:
        """After the last step write the update into the weight: validation comes next and must see it."""
        if not self.trainer.is_last_batch:
            return
        with torch.no_grad(), timed(self.seconds, "apply"):
            update = self.update or self.delta()
            if self.optimum is not None:
                gap = (self.loss.terms(update).total / self.optimum - 1).item()
                if not gap <= FAR:
                    log.warning(
                        "layer %d: descent ended with an optimality gap of %.2g: take more model.steps, another "
                        "model.learning_rate, or a closed form.", batch.layer, gap,
                    )  # fmt: skip
            figures = _effect(self.weight, batch, update)
            figures |= vars(self.lm.apply(batch.layer, update))
            check_identical(f"the edited weight of layer {batch.layer}", self.weight)
        self.update, self.converged = None, False
        self.layer_figures[batch.layer] = figures
        self.log_dict({f"layer/{name}": value for name, value in figures.items()}, batch_size=1)
        log.info(
            "layer %d: update of %.3g of the weight's norm, rank %d; residual %.3g -> %.3g, zero term %.3g -> %.3g",
            batch.layer, figures["relative_norm"], figures["rank"], figures["residual_before"],
            figures["residual_after"], figures["zero_term_before"], figures["zero_term_after"],
        )  # fmt: skip

    def validation_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """Add a batch of queries or text to its metric; ``None`` where a process has no share."""
        if batch is None:
            return
        with timed(self.seconds, "evaluation"):
            update_metric(self.lm, self.metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole evaluation."""
        self._log_figures("val")

    def test_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """The same as validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole evaluation."""
        self._log_figures("test")

    def predict_step(self, batch: list[Fact], batch_idx: int) -> list[dict[str, str]]:
        """Greedy completions of the facts' prompts."""
        return [
            {"prompt": fact.prompt, "completion": self.lm.generate(fact.prompt, COMPLETION_TOKENS, chat=fact.chat)}
            for fact in batch
        ]

    def configure_optimizers(self) -> Optimizer:
        """Plain gradient descent with a step that cannot overshoot in whitened coordinates; Adam on a dense Delta."""
        if self.parametrisation == "dense":
            return Adam(self.delta.parameters(), lr=self.learning_rate or 1e-3)
        longest = step_size(self.objective.zero_weight, self.objective.forget_weight)
        return SGD(self.delta.parameters(), lr=self.learning_rate or longest)

    def _log_figures(self, prefix: str) -> None:
        self.figures = compute_metrics(self.metrics)
        self.log_dict({f"{prefix}/{name}": value for name, value in self.figures.items()})
        self.metrics.reset()


def _effect(weight: Tensor, problem: LayerProblem, update: LowRankUpdate) -> dict[str, float]:
    """Norms of residual and zero term, averaged over facts (root mean square), before and after an update."""
    facts = problem.keys.shape[1] ** 0.5
    basis = solvers.orthonormal_basis(problem.values)
    outputs = weight.double() @ problem.keys
    change = update.left @ (update.right @ problem.keys)
    return {
        "residual_before": problem.residuals.norm().item() / facts,
        "residual_after": (problem.residuals - change).norm().item() / facts,
        "zero_term_before": (basis.mT @ outputs).norm().item() / facts,
        "zero_term_after": (basis.mT @ (outputs + change)).norm().item() / facts,
    }
