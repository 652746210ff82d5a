"""The loop over layers: next problem, solution, update; and the whole way from facts to an edited model in one call."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from zu_lightning.editing.closed_forms import Erase
from zu_lightning.editing.latents import NeutralTargets
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.method import EditingMethod, Method
from zu_lightning.editing.preparation import Preparation, layer_problem, prepare
from zu_lightning.editing.request import Request, check_neutral_target
from zu_lightning.editing.reweighting import solve_with_reweighting
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import resolved_answer
from zu_lightning.lm.updates import apply_update
from zu_lightning.lm.weights import check_projections
from zu_lightning.runtime.distributed import all_reduce, check_identical
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

LOST_SHARE = 0.1
"""Share of an update's norm lost to rounding above which a warning is logged: an update that is small beside its weight
falls between the numbers that bfloat16 can tell apart."""


@dataclass(frozen=True)
class LayerScores:
    """Effect of an edit on its layer. Norms are root mean squares over the facts of the request.

    Attributes:
        residual_before: Norm of the residual before the edit.
        residual_after: The same after the edit; zero means that every neutral target is met.
        zero_term_before: Norm of the layer's output along the original values, before.
        zero_term_after: The same after the edit.
        relative_norm: Frobenius norm of the update divided by that of the weight before it.
        rank: Rank of the update (an upper bound).
        stored_error: Precision lost to rounding to the weight's dtype, as a share of the update's norm.
    """

    residual_before: float
    residual_after: float
    zero_term_before: float
    zero_term_after: float
    relative_norm: float
    rank: int
    stored_error: float


@dataclass(frozen=True)
class LayerEdit:
    """An edit that was written into a layer's weight.

    Attributes:
        update: What was added.
        scores: Its effect.
    """

    update: LowRankUpdate
    scores: LayerScores


@dataclass(frozen=True)
class UnlearnResult:
    """Result of :func:`unlearn`.

    Attributes:
        targets: The neutral targets; the share of ``original_lost`` is the upper bound for any edit.
        edits: For each layer, what was written.
    """

    targets: NeutralTargets
    edits: dict[int, LayerEdit]

    @property
    def updates(self) -> dict[int, LowRankUpdate]:
        """The update of each layer, for :func:`zu_lightning.export_adapter`."""
        return {layer: edit.update for layer, edit in self.edits.items()}


class LayerEditor:
    """Edits one layer after the other: :meth:`next_problem`, :meth:`solve`, :meth:`write`, until none is left.

    Args:
        lm: The model, unedited.
        request: What to forget and what to preserve.
        layers: Layers to edit, lowest first.
        method: The method.
        neutral_target: The neutral answer.
        monitor: Times the phases, and shows progress.
        targets: Neutral targets of an interrupted run.
        updates: Updates of an interrupted run, by layer, which are not in the model yet.
    """

    def __init__(
        self,
        lm: EditableLM,
        request: Request,
        layers: Sequence[int],
        method: EditingMethod,
        neutral_target: str = "unknown",
        monitor: Monitor | None = None,
        targets: NeutralTargets | None = None,
        updates: Mapping[int, LowRankUpdate] | None = None,
    ) -> None:
        self.lm, self.request, self.layers, self.method = lm, request, layers, method
        self.neutral_target, self.monitor, self.targets = neutral_target, monitor or Monitor(), targets
        self.preparation: Preparation | None = None
        self.unwritten = dict(updates or {})
        """Updates of an interrupted run that are not in the model yet."""
        self.layers_left = [layer for layer in layers if layer not in self.unwritten]
        """Layers that are not edited yet, the next one first."""

    def next_problem(self) -> LayerProblem:
        """The problem of the next layer; the first call reads what all layers need from the unedited model."""
        if self.preparation is None:
            self.preparation = prepare(
                self.lm, self.request, self.layers, self.method, self.neutral_target, self.targets, self.monitor
            )
            self.targets = self.preparation.targets
        self.restore()
        return layer_problem(self.lm, self.request, self.layers_left[0], self.preparation, self.monitor)

    def solve(self, problem: LayerProblem) -> LowRankUpdate:
        """The closed form's update of a layer; of the last one, with reweighting if the method asks for it."""
        assert self.preparation is not None
        with self.monitor.timed("solve"):
            # Before the last layer no edit is whole, so that nothing can be said about what is left of a fact.
            if not self.method.reweighting_iterations or problem.layer != self.layers[-1]:
                return self.method(self.lm.weight(problem.layer), problem)
            return solve_with_reweighting(
                self.lm,
                self.method,
                problem,
                self.request.forget,
                self.preparation.variants,
                self.request.text.reading.batch_tokens,
            )

    def write(self, problem: LayerProblem, update: LowRankUpdate) -> LayerEdit:
        """Add the update to the layer's weight; the layer is then done."""
        with torch.no_grad(), self.monitor.timed("apply"):
            edit = write_update(self.lm, problem, update)
        self.layers_left.remove(problem.layer)
        return edit

    def restore(self) -> None:
        """Add the updates of an interrupted run to the weights again, once the unedited model is not needed."""
        for layer, update in self.unwritten.items():
            apply_update(self.lm, layer, update)
        self.unwritten = {}


def unlearn(
    lm: EditableLM,
    request: Request,
    method: Method = Erase(),
    layers: Sequence[int] = (0,),
    neutral_target: str = "unknown",
    *,
    progress: bool = False,
) -> UnlearnResult:
    """Make a model forget what a request asks for, in place, with the same weights as ``train.py fit``.

    Args:
        lm: The model; ``lm.model`` holds the edited weights afterwards.
        request: What to forget and what to preserve, such as ``Request.draw(facts, corpus, method=method)``.
        method: A closed form.
        layers: Layers to edit, lowest first.
        neutral_target: The neutral answer, for methods whose targets are a word.
        progress: Whether to show progress bars.

    Returns:
        The targets and the edits.

    Raises:
        InputError: The method trains, a layer does not exist or cannot be edited, the neutral answer is a true one,
            there is no retain text, a prompt is too long, or a layer has no solution; layers before it keep their
            edits.
    """
    if not isinstance(method, EditingMethod) or method.trains:
        remedy = f"it trains, which needs Lightning: run `python train.py fit --method {method.name}`."
        raise InputError("method", method.name, remedy)
    neutral_target = resolved_answer(lm.tokenizer, neutral_target)
    if method.teaches_neutral_target:
        check_neutral_target(neutral_target, request.forget)
    check_projections(lm, layers)
    editor = LayerEditor(lm, request, layers, method, neutral_target, Monitor(progress=progress))
    edits = {}
    while editor.layers_left:
        problem = editor.next_problem()
        edits[problem.layer] = editor.write(problem, editor.solve(problem))
    assert editor.targets is not None
    return UnlearnResult(editor.targets, edits)


def write_update(lm: EditableLM, problem: LayerProblem, update: LowRankUpdate) -> LayerEdit:
    """Write the solution of a layer's problem into its weight.

    Raises:
        ValueError: The update holds NaN or infinite entries; the weight is then unchanged.
        RuntimeError: Processes disagree about the edited weight.
    """
    problem = problem.without_previous()
    basis = problem.value_basis()
    along = basis.mT @ (lm.weight(problem.layer).double() @ problem.keys)
    change = update.left @ (update.right @ problem.keys)
    report = apply_update(lm, problem.layer, update)
    check_identical(f"the edited weight of layer {problem.layer}", lm.weight(problem.layer))
    missing = problem.residuals, problem.residuals - change, along, along + basis.mT @ change
    squares = all_reduce(torch.stack([errors.square().sum() for errors in missing]))[0]
    norms = (squares / problem.count).sqrt().tolist()
    scores = LayerScores(
        residual_before=norms[0],
        residual_after=norms[1],
        zero_term_before=norms[2],
        zero_term_after=norms[3],
        relative_norm=report.relative_norm,
        rank=report.rank,
        stored_error=report.stored_error,
    )
    log.info(
        "layer %d: update of rank %d and %.3g times the weight's norm; distance to the targets %.3g -> %.3g",
        problem.layer, scores.rank, scores.relative_norm, scores.residual_before, scores.residual_after,
    )  # fmt: skip
    if scores.stored_error > LOST_SHARE:
        log.warning(
            "layer %d: rounding to the weight's %s changed the update by %.0f%% of its norm: keep the weights in "
            "float32 (model.dtype: float32).",
            problem.layer, str(lm.weight(problem.layer).dtype).removeprefix("torch."), 100 * scores.stored_error,
        )  # fmt: skip
    return LayerEdit(LowRankUpdate(update.left.detach().clone(), update.right.detach().clone()), scores)
