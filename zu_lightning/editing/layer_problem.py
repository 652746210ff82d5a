"""The editing problem of one layer, in tensors only."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.runtime.distributed import all_gather, all_reduce
from zu_lightning.solvers import Eigh, ForgetSums, basis_from_sums, orthonormal_basis


@dataclass(frozen=True)
class LayerProblem:
    """The editing problem of one layer; facts are columns.

    With several processes, the columns of each are its share of the facts
    (:func:`zu_lightning.runtime.distributed.rank_slice`). Sums over facts are then all-reduced, so that all processes
    have to ask for them.

    Attributes:
        layer: Index of the layer.
        keys: K, d_in x n: inputs of the projection at the lookup token, averaged over contexts (the bare prompt weighs
            1/2, the others 1/2 together; with ``deviations`` all weigh alike).
        residuals: R, d_out x n: this layer's share of the distance to the neutral targets.
        values: V, d_out x n: original values.
        second_moment: C, d_in x d_in: uncentered mean of k k^T over retain tokens.
        protected_keys: d_in x m: keys of protected facts, computed like those of the facts to forget; of m facts a
            shard, too.
        deviations: d_in x n x variants: deviations of a fact's keys over its prompt variants, see
            :class:`zu_lightning.editing.keys.VariedKeys`; ``None`` to solve at the mean keys.
        fact_weights: n, weight of each fact; ``None`` for equal weights.
        previous: How many of this process's facts, the last ones, are those of previous requests: their residuals are
            zero, so that what the model says about them stays as it is, and their values are still removed.
        eigh: Eigendecomposition of second moments in any units, possibly cached.
    """

    layer: int
    keys: Tensor
    residuals: Tensor
    values: Tensor
    second_moment: Tensor
    protected_keys: Tensor | None = None
    deviations: Tensor | None = None
    fact_weights: Tensor | None = None
    previous: int = 0
    eigh: Eigh = torch.linalg.eigh

    @property
    def count(self) -> int:
        """Number of facts of all processes."""
        return int(all_reduce(torch.tensor(self.keys.shape[1], device=self.keys.device))[0])

    def gathered(self) -> "LayerProblem":
        """The problem with the columns of all facts, weighted and at mean keys, on every process."""
        own = self.at_mean_keys().weighing_facts()
        keys, residuals, values = (all_gather(columns.mT).mT for columns in (own.keys, own.residuals, own.values))
        return replace(own, keys=keys, residuals=residuals, values=values)

    def whole(self) -> "LayerProblem":
        """The problem with columns for all facts, on every process; at most as many columns as keys have entries.

        More facts than that are replaced by fewer columns with the same sums, for which methods that minimize squares
        find the same update (:meth:`zu_lightning.solvers.ForgetSums.columns`).
        """
        if self.count <= len(self.keys):
            return self.gathered()
        own = self.at_mean_keys().weighing_facts()
        # Values that are not finite on one process are refused by all of them, once the sums are known.
        K, R, V = own.keys.double(), own.residuals.double(), own.values.double()
        keys, residuals, values = ForgetSums(*all_reduce(K @ K.mT, R @ K.mT, V @ V.mT)).columns()
        return replace(own, keys=keys, residuals=residuals, values=values)

    def value_basis(self) -> Tensor:
        """U, d_out x r: orthonormal basis of all facts' values."""
        values = self.values.double()
        if self.count <= len(self.keys):
            return orthonormal_basis(all_gather(values.mT).mT)
        return basis_from_sums(all_reduce(values @ values.mT)[0])

    def without_previous(self) -> "LayerProblem":
        """The problem without the facts of previous requests."""
        own = self.keys.shape[1] - self.previous
        return replace(
            self,
            keys=self.keys[:, :own],
            residuals=self.residuals[:, :own],
            values=self.values[:, :own],
            deviations=None if self.deviations is None else self.deviations[:, :own],
            fact_weights=None if self.fact_weights is None else self.fact_weights[:own],
            previous=0,
        )

    def protecting(self, weight: float, *, relative: bool) -> "LayerProblem":
        """The problem with the protected keys as part of the second moment.

        Args:
            weight: Their weight.
            relative: Whether ``weight`` is the trace of their second moment as a share of the text's, or the factor of
                their sum of k k^T beside the mean over the text's tokens.
        """
        keys = self.protected_keys
        if keys is None or not weight:
            return self
        moment = all_reduce(keys @ keys.mT)[0]
        if not moment.any():
            return self
        factor = weight * self.second_moment.trace() / moment.trace() if relative else weight
        return replace(self, second_moment=self.second_moment + factor * moment)

    def weighing_facts(self) -> "LayerProblem":
        """The problem with equal weights: columns times the square roots of their weights.

        All methods but ROME, whose facts are constraints, sum squares over facts, so that this is exact.
        """
        if self.fact_weights is None:
            return self
        root = self.fact_weights.sqrt()
        return replace(
            self,
            keys=self.keys * root,
            residuals=self.residuals * root,
            values=self.values * root,
            deviations=None if self.deviations is None else self.deviations * root[:, None],
            fact_weights=None,
        )

    def at_mean_keys(self) -> "LayerProblem":
        """The problem at mean keys, without their deviations."""
        return replace(self, deviations=None)

    def averaged_over_prompts(self, weight: float) -> "LayerProblem":
        """The problem averaged over prompt variants, in place of the problem at the mean key.

        The mean over a fact's variants of ``||X k - r||^2`` is ``||X k_mean - r||^2 + tr(X S X^T)`` with ``S`` the
        covariance of its keys. So adding ``S`` of all facts to the second moment is exact, and keeps the rank at n.

        Args:
            weight: Weight of the first of these terms beside that of the second moment in the objective.
        """
        if self.deviations is None:
            return self
        ways = self.deviations.permute(1, 2, 0).flatten(0, 1)
        covariance = all_reduce(ways.mT @ ways)[0]
        return replace(self.at_mean_keys(), second_moment=self.second_moment + weight * covariance)

    def scale_free(self) -> "LayerProblem":
        """The problem in units that do not depend on the model.

        Keys have norm 1, values, residuals, and deviations are divided by the norm of their fact's key (an update
        solves both problems alike), and the second moment is divided by its mean eigenvalue. A weight or a threshold
        then means the same in every model and layer.
        """
        norms = self.keys.norm(dim=0).clamp(min=torch.finfo(self.keys.dtype).tiny)
        return replace(
            self,
            keys=self.keys / norms,
            residuals=self.residuals / norms,
            values=self.values / norms,
            deviations=None if self.deviations is None else self.deviations / norms[:, None],
            second_moment=self.second_moment / self.second_moment.diagonal().mean(),
        )
