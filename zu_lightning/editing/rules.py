"""Rules: ready-made choices of a solver and its weights, each a pure function of a weight and a layer's problem.

With ``scale_free`` (the default), weights and thresholds are in units that carry over from model to model, see
:meth:`zu_lightning.editing.layer_problem.LayerProblem.scale_free`; without it they are in the release's units, made for
models of 3 to 8 billion parameters.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from zu_lightning import solvers
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.objective import TermWeights
from zu_lightning.runtime.errors import InputError, require_positive
from zu_lightning.solvers import LowRankUpdate, NullSpaceCriterion

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A closed form that turns a layer's problem into an update of its weight."""

    scale_free: bool = True
    """Whether keys have norm 1 and the second moment has mean eigenvalue 1 for this rule."""
    protect_weight: float = 0.1
    """How much the keys of protected facts count beside those of the retain text: with ``scale_free`` the share of
    their second moment's trace, else the factor of their sum of k k^T beside the mean over tokens."""
    reweighting_iterations: int = 0
    """How often facts that are still known afterwards get more weight, and the last layer is solved again, by
    :func:`zu_lightning.editing.reweighting.solve_with_reweighting`."""

    def __post_init__(self) -> None:
        """Refuse weights and thresholds that mean nothing."""
        for name, value in asdict(self).items():
            if isinstance(value, float | int):
                require_positive(f"{type(self).__name__}.{name}", value, or_zero=True)

    def __call__(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """The update of ``weight`` (d_out x d_in) that solves ``problem``, in float64 factors.

        Raises:
            InputError: These weights or this threshold do not suit this layer's retain keys.
        """
        with _explained(self, problem):
            return self.solve(weight, self.together(self.in_units(problem)))

    def together(self, problem: LayerProblem) -> LayerProblem:
        """The problem of all facts, of which each process has its share; many of them become fewer columns.

        A rule that does not minimize squares that are added up over facts overrides this, and takes all columns.
        """
        return problem.whole()

    def in_units(self, problem: LayerProblem) -> LayerProblem:
        """The problem in the units of this rule's weights."""
        problem = problem.protecting(self.protect_weight, relative=self.scale_free)
        problem = (problem.scale_free() if self.scale_free else problem).weighing_facts()
        if problem.deviations is None:
            return problem
        weight = self.weight_beside_moment
        if weight is None:
            log.warning(
                "%s has no retain term: it looks at mean keys, as without `latents.average_over_prompts`.",
                type(self).__name__,
            )
            return problem.at_mean_keys()
        return problem.averaged_over_prompts(weight)

    @property
    def weight_beside_moment(self) -> float | None:
        """Weight of the distance to the neutral targets beside that of the second moment; ``None`` without both."""
        return None

    @abstractmethod
    def solve(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """The update, for a problem in this rule's units that :meth:`together` gave."""


@dataclass(frozen=True, kw_only=True)
class NullSpaceRule(Rule):
    """A rule that changes only what retain keys (almost) never point at."""

    threshold: float
    """How much of the retain keys a direction may hold and still be free to change."""
    criterion: NullSpaceCriterion = "absolute"
    """What the threshold means: an eigenvalue, its share of the largest one, or a share of all energy."""

    def null_space(self, problem: LayerProblem) -> Tensor:
        """Q, d_in x q, of a problem in this rule's units.

        Raises:
            InputError: It is empty.
        """
        with _explained(self, problem):
            basis = solvers.null_space(problem.second_moment, self.threshold, self.criterion, problem.eigh)
        C = problem.second_moment.double()
        energy = ((C @ basis) * basis).sum() / C.trace()
        log.info(
            "layer %d: null space of %d of %d directions; they hold %.2g%% of the retain keys' energy",
            problem.layer, basis.shape[1], len(basis), 100 * energy,
        )  # fmt: skip
        return basis


@dataclass(frozen=True, kw_only=True)
class RetainRule(Rule):
    """A rule that weighs what retain keys notice against the distance to the neutral targets."""

    retain_weight: float
    """Weight of what retain keys notice."""
    mean_over_facts: bool = False
    """Whether all that is added up over facts is a mean in place of a sum: one ``retain_weight`` suits any number."""

    def in_units(self, problem: LayerProblem) -> LayerProblem:
        """See :class:`Rule`."""
        if self.mean_over_facts:
            weights = (
                problem.keys.new_ones(problem.keys.shape[1]) if problem.fact_weights is None else problem.fact_weights
            )
            problem = replace(problem, fact_weights=weights / problem.count)
        return super().in_units(problem)

    @property
    def weight_beside_moment(self) -> float:
        """See :class:`Rule`.

        Raises:
            InputError: What retain keys notice has no weight.
        """
        if not self.retain_weight:
            remedy = "give it a positive weight, or leave `latents.average_over_prompts` out."
            raise InputError(f"{type(self).__name__}.retain_weight", self.retain_weight, remedy)
        return self.distance_weight / self.retain_weight

    @property
    def distance_weight(self) -> float:
        """Weight of the distance to the neutral targets in the rule's objective."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class ZeroUnlearn(RetainRule):
    """:func:`zu_lightning.solvers.zero_unlearn`: multiplicative, few facts."""

    retain_weight: float = 2.0
    """Weight of what retain keys notice."""
    forget_weight: float = 1.0
    """Weight of the distance to the neutral targets."""
    ridge: float = 0.02
    """Weight of the size of the change."""
    slack: float = 0.0
    """Share of the original values that the edit leaves; the paper has none, its authors' release 0.01."""

    @property
    def distance_weight(self) -> float:
        """See :class:`RetainRule`."""
        return self.forget_weight

    def solve(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.zero_unlearn`."""
        return solvers.zero_unlearn(
            weight, problem.keys, problem.residuals, problem.values, problem.second_moment,
            retain_weight=self.retain_weight, forget_weight=self.forget_weight, ridge=self.ridge, slack=self.slack,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ZeroUnlearnGD(NullSpaceRule):
    """:func:`zu_lightning.solvers.zero_unlearn_gd`: the exact optimum in the null space, many facts."""

    threshold: float = 0.15
    zero_weight: float = 1.0
    """Weight of what is left of the original values."""
    forget_weight: float = 100.0
    """Weight of the distance to the neutral targets."""
    ridge: float = 0.1
    """Weight of the size of the update."""

    @property
    def weights(self) -> TermWeights:
        """The weights of the objective's three terms."""
        return TermWeights(self.zero_weight, self.forget_weight, self.ridge)

    def solve(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.zero_unlearn_gd`."""
        return solvers.zero_unlearn_gd(
            weight, problem.keys, problem.residuals, problem.values, self.null_space(problem),
            zero_weight=self.zero_weight, forget_weight=self.forget_weight, ridge=self.ridge,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ZeroUnlearnSoft(RetainRule):
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
        """See :class:`RetainRule`."""
        return self.forget_weight

    def solve(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.zero_unlearn_soft`."""
        return solvers.zero_unlearn_soft(
            weight, problem.keys, problem.residuals, problem.values, problem.second_moment,
            zero_weight=self.zero_weight, forget_weight=self.forget_weight,
            retain_weight=self.retain_weight, ridge=self.ridge,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Memit(RetainRule):
    """:func:`zu_lightning.solvers.memit`."""

    retain_weight: float = 0.3
    """Weight of the retain keys' second moment."""

    def solve(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.memit`."""
        return solvers.memit(
            weight, problem.keys, problem.residuals, problem.second_moment, retain_weight=self.retain_weight
        )


@dataclass(frozen=True, kw_only=True)
class Erase(Memit):
    """:class:`Memit` with strengths for targets that know nothing (``target: reference``).

    They were chosen on the demo, on draws that are not reported (docs/erase.md).
    """

    retain_weight: float = 0.006
    protect_weight: float = 0.5
    mean_over_facts: bool = True
    reweighting_iterations: int = 1


@dataclass(frozen=True, kw_only=True)
class AlphaEdit(NullSpaceRule):
    """:func:`zu_lightning.solvers.alphaedit`."""

    threshold: float = 0.3
    ridge: float = 0.01
    """Weight of the size of the update."""

    def solve(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.alphaedit`."""
        basis = self.null_space(problem)
        return solvers.alphaedit(weight, problem.keys, problem.residuals, basis, ridge=self.ridge)


@dataclass(frozen=True, kw_only=True)
class Rome(Rule):
    """:func:`zu_lightning.solvers.rome`, one fact after the other; each sees the edits before it."""

    def together(self, problem: LayerProblem) -> LayerProblem:
        """See :class:`Rule`; facts are met one by one, so that every column counts."""
        return problem.gathered()

    def solve(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """See :func:`zu_lightning.solvers.rome`."""
        keys, targets = problem.keys.double(), problem.residuals.double()
        left = weight.new_zeros(len(weight), 0, dtype=torch.float64)
        right = weight.new_zeros(0, weight.shape[1], dtype=torch.float64)
        for i in range(keys.shape[1]):
            residual = targets[:, i] - left @ (right @ keys[:, i])
            update = solvers.rome(weight, keys[:, i], residual, problem.second_moment)
            left, right = torch.cat([left, update.left], 1), torch.cat([right, update.right])
        return LowRankUpdate(left, right)


@contextmanager
def _explained(rule: Rule, problem: LayerProblem) -> Iterator[None]:
    """Solvers know numbers; a user has to know which rule and which layer they belong to."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        # The strength that decides whether there is a solution.
        name = next((name for name in ("threshold", "ridge", "retain_weight") if hasattr(rule, name)), "scale_free")
        remedy = f"layer {problem.layer} has no solution: {error}"
        raise InputError(f"{type(rule).__name__}.{name}", getattr(rule, name), remedy) from error
