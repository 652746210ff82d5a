"""Editing methods: choices of a solver and its weights, each a pure function of a weight and a layer's problem."""

import logging
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from zu_lightning import solvers
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.method import EditingMethod, LatentOptions, TargetKind
from zu_lightning.editing.objective import TermWeights
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate, NullSpaceCriterion

log = logging.getLogger(__name__)

ERASE_LATENTS = LatentOptions(
    contexts=1,
    templates=5,
    examples=4,
    average_over_prompts=True,
    prompts_per_step=2,
    steps=12,
    learning_rate=0.2,
    clamp=1.0,
    same_subject_weight=0.5,
)
"""Targets from what the model predicts for unknown subjects, over prompts of the relation."""


@dataclass(frozen=True, kw_only=True)
class NullSpaceMethod(EditingMethod):
    """A method that changes only what retain keys (almost) never point at."""

    threshold: float
    """How much of the retain keys a direction may hold and still be free to change."""
    criterion: NullSpaceCriterion = "absolute"
    """What the threshold means: an eigenvalue, its share of the largest one, or a share of all energy."""

    def null_space(self, problem: LayerProblem) -> Tensor:
        """Q, d_in x q, of a problem in this method's units.

        Raises:
            InputError: It is empty.
        """
        with self.explained(problem):
            basis = solvers.null_space(problem.second_moment, self.threshold, self.criterion, problem.eigh)
        C = problem.second_moment.double()
        energy = ((C @ basis) * basis).sum() / C.trace()
        log.info(
            "layer %d: null space of %d of %d directions; they hold %.2g%% of the retain keys' energy",
            problem.layer, basis.shape[1], len(basis), 100 * energy,
        )  # fmt: skip
        return basis

    def threshold_over_mean(self, eigenvalues: Tensor) -> float | None:
        """The threshold relative to the mean eigenvalue, for a picture; ``None`` if it is a share of all energy.

        Args:
            eigenvalues: Of the second moment, in the model's units.
        """
        mean = eigenvalues.mean().item()
        units = {"absolute": 1.0 if self.scale_free else 1 / mean, "relative": eigenvalues.max().item() / mean}
        return self.threshold * units[self.criterion] if self.criterion in units else None


@dataclass(frozen=True, kw_only=True)
class RetainMethod(EditingMethod):
    """A method that weighs what retain keys notice against the distance to the neutral targets."""

    retain_weight: float
    """Weight of what retain keys notice."""
    mean_over_facts: bool = False
    """Whether all that is added up over facts is a mean in place of a sum: one ``retain_weight`` suits any number."""

    def in_units(self, problem: LayerProblem) -> LayerProblem:
        """See :class:`EditingMethod`."""
        if self.mean_over_facts:
            weights = (
                problem.keys.new_ones(problem.keys.shape[1]) if problem.fact_weights is None else problem.fact_weights
            )
            problem = replace(problem, fact_weights=weights / problem.count)
        return super().in_units(problem)

    @property
    def weight_beside_moment(self) -> float:
        """See :class:`EditingMethod`.

        Raises:
            InputError: What retain keys notice has no weight.
        """
        if not self.retain_weight:
            remedy = "give it a positive weight, or set latents.average_over_prompts to false."
            raise InputError(f"{type(self).__name__}.retain_weight", self.retain_weight, remedy)
        return self.distance_weight / self.retain_weight

    @property
    def distance_weight(self) -> float:
        """Weight of the distance to the neutral targets in the method's objective."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class ZeroTermMethod(EditingMethod):
    """A method that removes what is left of the original values V."""

    optimize_values: bool = True
    """Whether V is optimized for the true answers (the paper) or observed (``V = W K``)."""

    @property
    def needs_values(self) -> bool:
        """Whether V is optimized."""
        return self.optimize_values


@dataclass(frozen=True, kw_only=True)
class ZeroUnlearn(RetainMethod, ZeroTermMethod):
    """:func:`zu_lightning.solvers.zero_unlearn`: multiplicative, few facts."""

    retain_weight: float = 2.0
    """Weight of what retain keys notice."""
    forget_weight: float = 1.0
    """Weight of the distance to the neutral targets."""
    ridge: float = 0.02
    """Weight of the size of the change."""

    @property
    def distance_weight(self) -> float:
        """See :class:`RetainMethod`."""
        return self.forget_weight

    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.zero_unlearn`."""
        return solvers.zero_unlearn(
            weight, problem.keys, problem.residuals, problem.values, problem.second_moment,
            retain_weight=self.retain_weight, forget_weight=self.forget_weight, ridge=self.ridge,
            slack=self.release.slack,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ZeroUnlearnGD(NullSpaceMethod, ZeroTermMethod):
    """Many facts in the null space of the retain keys (paper, Eq. 10): solved exactly, or by gradient descent.

    The exact solution is :func:`zu_lightning.solvers.zero_unlearn_gd`; descent, in
    :class:`zu_lightning.EditingModule`, converges to it.
    """

    solve: Literal["exact", "descent"] = "exact"
    """Whether a layer is solved exactly, in one step, or by gradient descent."""
    threshold: float = 0.15
    zero_weight: float = 1.0
    """Weight of what is left of the original values."""
    forget_weight: float = 100.0
    """Weight of the distance to the neutral targets."""
    ridge: float = 0.1
    """Weight of the size of the update."""
    learning_rate: float | None = None
    """Step size of descent; by default the longest safe one for whitened coordinates, 0.001 for a dense Delta."""
    steps: int = 20
    """Maximum number of descent steps per layer."""
    tolerance: float = 1e-10
    """Optimality gap, (objective - optimum) / optimum, at which descent on a layer ends; one more step is taken."""

    @property
    def positive(self) -> tuple[str, ...]:
        """Numbers without which there is no descent."""
        return "learning_rate", "steps", "tolerance"

    @property
    def trains(self) -> bool:
        """Whether it descends."""
        return self.solve == "descent"

    @property
    def weights(self) -> TermWeights:
        """The weights of the objective's three terms."""
        return TermWeights(self.zero_weight, self.forget_weight, self.ridge)

    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.zero_unlearn_gd`."""
        return solvers.zero_unlearn_gd(
            weight, problem.keys, problem.residuals, problem.values, self.null_space(problem),
            zero_weight=self.zero_weight, forget_weight=self.forget_weight, ridge=self.ridge,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ZeroUnlearnSoft(RetainMethod, ZeroTermMethod):
    """:func:`zu_lightning.solvers.zero_unlearn_soft`: additive, with the retain term in place of the projector."""

    zero_weight: float = 1.0
    """Weight of what is left of the original values."""
    forget_weight: float = 1.0
    """Weight of the distance to the neutral targets."""
    retain_weight: float = 0.5
    """Weight of what retain keys notice."""
    ridge: float = 0.005
    """Weight of the size of the update."""

    @property
    def distance_weight(self) -> float:
        """See :class:`RetainMethod`."""
        return self.forget_weight

    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.zero_unlearn_soft`."""
        return solvers.zero_unlearn_soft(
            weight, problem.keys, problem.residuals, problem.values, problem.second_moment,
            zero_weight=self.zero_weight, forget_weight=self.forget_weight,
            retain_weight=self.retain_weight, ridge=self.ridge,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Memit(RetainMethod):
    """:func:`zu_lightning.solvers.memit`."""

    retain_weight: float = 0.3
    """Weight of the retain keys' second moment."""

    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.memit`."""
        return solvers.memit(
            weight, problem.keys, problem.residuals, problem.second_moment, retain_weight=self.retain_weight
        )


@dataclass(frozen=True, kw_only=True)
class Erase(Memit):
    """Erasure: :func:`zu_lightning.solvers.memit` towards what the model predicts for unknown subjects.

    Strengths were chosen on the demo, on draws that are not reported (docs/erase.md).
    """

    target_kind: TargetKind = "reference"
    latents: LatentOptions = ERASE_LATENTS
    protect_num: int = 1000
    protect_same_subject: bool = True
    retain_weight: float = 0.006
    protect_weight: float = 0.5
    mean_over_facts: bool = True
    reweighting_iterations: int = 1


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(NullSpaceMethod):
    """:func:`zu_lightning.solvers.alphaedit`."""

    threshold: float = 0.3
    ridge: float = 0.01
    """Weight of the size of the update."""

    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.alphaedit`."""
        basis = self.null_space(problem)
        return solvers.alphaedit(weight, problem.keys, problem.residuals, basis, ridge=self.ridge)


@dataclass(frozen=True, kw_only=True)
class Rome(EditingMethod):
    """:func:`zu_lightning.solvers.rome`, one fact after the other; each sees the edits before it."""

    def together(self, problem: LayerProblem) -> LayerProblem:
        """See :class:`EditingMethod`; facts are met one by one, so that every column counts."""
        return problem.gathered()

    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.rome`."""
        keys, targets = problem.keys.double(), problem.residuals.double()
        left = weight.new_zeros(len(weight), 0, dtype=torch.float64)
        right = weight.new_zeros(0, weight.shape[1], dtype=torch.float64)
        for i in range(keys.shape[1]):
            residual = targets[:, i] - left @ (right @ keys[:, i])
            update = solvers.rome(weight, keys[:, i], residual, problem.second_moment)
            left, right = torch.cat([left, update.left], 1), torch.cat([right, update.right])
        return LowRankUpdate(left, right)
