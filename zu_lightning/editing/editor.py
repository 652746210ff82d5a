"""From facts to an edited model in one call, without Lightning."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from zu_lightning.editing.latents import NeutralTargets, TargetOptions
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.preparation import Preparation, layer_problem, prepare
from zu_lightning.editing.request import Request, check_neutral_target
from zu_lightning.editing.reweighting import solve_layer
from zu_lightning.editing.rules import Rule
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import ReadingOptions, RetainText, retain_documents
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import resolved_answer
from zu_lightning.lm.updates import apply_update
from zu_lightning.lm.weights import check_projections
from zu_lightning.runtime.distributed import all_reduce, check_identical
from zu_lightning.runtime.timing import Monitor
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

LOST_SHARE = 0.1
"""Share of an update's norm that rounding may take before a warning: an update that is small beside its weight falls
between the numbers that bfloat16 can tell apart."""


@dataclass(frozen=True)
class LayerScores:
    """What an edit did to its layer. Norms are root mean squares over the facts of the request.

    Attributes:
        residual_before: Norm of the residual before the edit.
        residual_after: The same after the edit; zero means that every neutral target is met.
        zero_term_before: Norm of the layer's output along the original values, before.
        zero_term_after: The same after the edit.
        relative_norm: Frobenius norm of the update divided by that of the weight before it.
        rank: Rank of the update (an upper bound).
        stored_error: What rounding to the weight's dtype took away, as a share of the update's norm.
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
        scores: What it did.
    """

    update: LowRankUpdate
    scores: LayerScores


@dataclass(frozen=True)
class UnlearnResult:
    """What :func:`unlearn` did.

    Attributes:
        targets: The neutral targets; the share of ``original_lost`` is the ceiling of every rule.
        edits: For each layer, what was written.
    """

    targets: NeutralTargets
    edits: dict[int, LayerEdit]

    @property
    def updates(self) -> dict[int, LowRankUpdate]:
        """For each layer, what was added to its weight, as :func:`zu_lightning.export_adapter` takes it."""
        return {layer: edit.update for layer, edit in self.edits.items()}


def unlearn(
    lm: EditableLM,
    facts: Sequence[Fact],
    corpus: Iterable[str],
    layers: Sequence[int],
    rule: Rule,
    options: TargetOptions | None = None,
    *,
    progress: bool = False,
) -> UnlearnResult:
    """Make a model forget facts, in place.

    Args:
        lm: The model; ``lm.model`` holds the edited weights afterwards.
        facts: What to forget.
        corpus: Retain text, one document each; documents that name a forgotten subject are left out.
        layers: Layers to edit, lowest first.
        rule: The closed form.
        options: What the edits aim at, such as another neutral answer.
        progress: Whether to show progress bars.

    Returns:
        The targets and what was written.

    Raises:
        InputError: A layer does not exist or cannot be edited, the neutral answer is a true one, there is no retain
            text, a prompt is too long, or a rule cannot be solved; layers before it keep their edits.
    """
    options, monitor = options or TargetOptions(), Monitor(progress=progress)
    options = replace(options, neutral_target=resolved_answer(lm.tokenizer, options.neutral_target))
    if options.target == "word":
        check_neutral_target(options.neutral_target, facts)
    check_projections(lm, layers)
    text = RetainText(retain_documents(corpus, facts), ReadingOptions(corpus_tokens=None))
    request = Request(facts, text)
    preparation = prepare(lm, request, layers, options, monitor=monitor)
    return UnlearnResult(preparation.targets, edit_layers(lm, request, layers, rule, preparation, options, monitor))


def edit_layers(
    lm: EditableLM,
    request: Request,
    layers: Sequence[int],
    rule: Rule,
    preparation: Preparation,
    options: TargetOptions,
    monitor: Monitor | None = None,
) -> dict[int, LayerEdit]:
    """Edit one layer after the other; the arguments are those of :func:`prepare`, and what it gives.

    Returns:
        For each layer, what was written.

    Raises:
        ValueError: A rule cannot be solved; layers before it keep their edits.
    """
    edits = {}
    for layer in layers:
        problem = layer_problem(lm, request, layer, layers, preparation, options, monitor)
        update = solve_layer(lm, rule, problem, request, layers, preparation.targets.contexts, options)
        edits[layer] = write_update(lm, problem, update)
    return edits


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
            "float32 (`dtype: float32`).",
            problem.layer, str(lm.weight(problem.layer).dtype).removeprefix("torch."), 100 * scores.stored_error,
        )  # fmt: skip
    return LayerEdit(LowRankUpdate(update.left.detach().clone(), update.right.detach().clone()), scores)
