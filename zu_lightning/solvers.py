"""The mathematics of unlearning in one linear layer: tensors in, thin factors out, no language model in sight.

Every solver answers the same question: which update ``X`` should the output projection ``W`` of an MLP get, so that
forgotten facts lose their values and everything else stays? Symbols, with columns for facts:

    W  d_out x d_in   weight            C  d_in x d_in   uncentered second moment E[k k^T] of retain keys (a mean)
    K  d_in x n       forget keys       Q  d_in x q      orthonormal basis of the null space of C
    R  d_out x n      residuals V* - WK  U  d_out x r     orthonormal basis of span(V)
    V  d_out x n      original values

All solvers compute in float64, whatever they are given, and return float64 factors.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

NullSpaceCriterion = Literal["absolute", "relative", "energy"]
"""What a threshold of :func:`null_space` is measured against."""

Eigh = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Eigenvalues of a symmetric matrix, ascending, and its eigenvectors as columns; see ``torch.linalg.eigh``."""

RANK_TOLERANCE = 1e-6
"""Singular values below this share of the largest count as zero: keys come from float32 arithmetic at best."""


@dataclass(frozen=True)
class LowRankUpdate:
    """The update ``left @ right`` of a weight, kept as its factors.

    Attributes:
        left: d_out x r.
        right: r x d_in.
    """

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """Number of columns of ``left``: an upper bound of the rank of the update."""
        return self.left.shape[1]

    def dense(self) -> Tensor:
        """The update as one d_out x d_in matrix."""
        return self.left @ self.right


def zero_unlearn(
    weight: Tensor,
    keys: Tensor,
    residuals: Tensor,
    values: Tensor,
    second_moment: Tensor,
    *,
    retain_weight: float = 15000.0,
    forget_weight: float = 50.0,
    ridge: float = 1.0,
    slack: float = 0.0,
) -> LowRankUpdate:
    """ZeroUnlearn for few facts: the multiplicative closed form (arXiv 2605.18879, Eq. 4-8, Lemma 4.1).

    Minimizes over ``D``, with ``P = I - U U^T`` and ``V* = W K + R``::

        forget_weight ||P D W K - V*||^2 + retain_weight tr((P D W - W) C (P D W - W)^T) + ridge ||P D W - W||^2

    Since ``X = B^-1 W K`` with ``B = W (retain_weight C + forget_weight K K^T + ridge I) W^T``, the minimizer is
    ``W' = P (W + forget_weight R (X^T W))``: two thin factors, and ``U^T W' = 0`` for every input.

    Args:
        weight: W, d_out x d_in.
        keys: K, d_in x n, one column per fact.
        residuals: R, d_out x n.
        values: V, d_out x n; only its column span matters.
        second_moment: C, d_in x d_in, a mean over retain tokens.
        retain_weight: Weight of the retain term. The default is that of the authors' release, for 3 to 8 B models.
        forget_weight: Weight of the forget term, likewise.
        ridge: Weight of the change of W, likewise.
        slack: Use ``(1 + slack) I - U U^T`` for P, as the authors' release does (0.01). The paper has 0; any other
            value makes the update full rank and leaves ``U^T W' = slack U^T (...)``.

    Returns:
        ``W' - W``, of rank at most 2 n.

    Raises:
        ValueError: Shapes disagree, something is not finite, or ``B`` is singular.
    """
    W, K, R, V, C = _checked(weight=weight, keys=keys, residuals=residuals, values=values, second_moment=second_moment)
    U = orthonormal_basis(V)
    WK = W @ K
    WC = W @ C
    B = retain_weight * WC @ W.mT + forget_weight * WK @ WK.mT + ridge * W @ W.mT
    X = _solve_positive_definite(B, WK, "W (retain_weight C + forget_weight K K^T + ridge I) W^T")
    PR = (1 + slack) * R - U @ (U.mT @ R)
    left = [-U, forget_weight * PR]
    right = [U.mT @ W, X.mT @ W]
    if slack:
        left.append(slack * torch.eye(len(W), dtype=W.dtype, device=W.device))
        right.append(W)
    return _finite(LowRankUpdate(torch.cat(left, 1), torch.cat(right)))


def zero_unlearn_gd(
    weight: Tensor,
    keys: Tensor,
    residuals: Tensor,
    values: Tensor,
    null_space: Tensor,
    *,
    zero_weight: float = 1.0,
    forget_weight: float = 100.0,
    ridge: float = 0.1,
) -> LowRankUpdate:
    """The exact optimum of ZeroUnlearn-GD (arXiv 2605.18879, Eq. 10-14, Lemma 5.1), to which the paper descends.

    Minimizes over ``X = Delta Q Q^T``::

        zero_weight ||U^T (W + X) K||^2 + forget_weight ||(W + X) K - V*||^2 + ridge ||X||^2

    The retain term of the paper vanishes because ``X C = 0``. The two operators on X are simultaneously diagonal, so
    the optimum costs O(d n^2) and not the O(d^6) of a Kronecker product.

    Args:
        weight: W, d_out x d_in.
        keys: K, d_in x n, one column per fact.
        residuals: R, d_out x n.
        values: V, d_out x n; only its column span matters (the authors' release; the paper writes V itself).
        null_space: Q, d_in x q, orthonormal columns.
        zero_weight: Weight of the zero term.
        forget_weight: Weight of the distance to the neutral targets.
        ridge: Weight of the size of the update.

    Returns:
        X, of rank at most n.

    Raises:
        ValueError: Shapes disagree or something is not finite.
    """
    W, K, R, V, Q = _checked(weight=weight, keys=keys, residuals=residuals, values=values, null_space=null_space)
    update = _additive_optimum(W @ K, Q.mT @ K, R, V, zero_weight, forget_weight, ridge)
    return LowRankUpdate(update.left, update.right @ Q.mT)


@dataclass(frozen=True)
class ForgetSums:
    """All that a solver needs to know of any number of facts, in memory that does not grow with them.

    Every solver but :func:`rome` minimizes squares that are added up over facts, so that its minimizer depends on these
    sums alone. Batches and processes add up: ``ForgetSums.of(...) + ForgetSums.of(...)``, or an all-reduce of each
    field.

    Attributes:
        keys: ``K K^T``, d_in x d_in.
        residuals: ``R K^T``, d_out x d_in.
        values: ``V V^T``, d_out x d_out.
    """

    keys: Tensor
    residuals: Tensor
    values: Tensor

    @classmethod
    def of(cls, keys: Tensor, residuals: Tensor, values: Tensor) -> "ForgetSums":
        """The sums of a batch of facts: ``keys`` d_in x n, ``residuals`` and ``values`` d_out x n.

        Raises:
            ValueError: Shapes disagree or something is not finite.
        """
        K, R, V = _checked(keys=keys, residuals=residuals, values=values)
        return cls(K @ K.mT, R @ K.mT, V @ V.mT)

    def __add__(self, other: "ForgetSums") -> "ForgetSums":
        return ForgetSums(self.keys + other.keys, self.residuals + other.residuals, self.values + other.values)

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """At most d_in columns in place of any number of facts: keys, residuals, and values with the same sums.

        With ``K K^T = Ug S^2 Ug^T`` they are ``Ug S``, ``R K^T Ug S^-1``, and likewise for V, so that
        ``solvers.zero_unlearn_gd(weight, *sums.columns(), null_space)`` is the optimum for all facts. Squaring halves
        the digits: directions in which K or V have less than 1e-6 of their largest singular value are lost in rounding,
        and count as zero. What is lost of the residuals, a part that no update can reach, moves no optimum.

        Returns:
            Keys d_in x r, residuals d_out x r, and values d_out x r', where r and r' are the ranks of K and V.

        Raises:
            ValueError: Shapes disagree or something is not finite.
        """
        KK, RK, VV = _checked(key_sums=self.keys, residual_sums=self.residuals, value_sums=self.values)
        squares, Ug = _positive_eigenpairs(KK)
        s = squares.sqrt()
        value_squares, U = _positive_eigenpairs(VV)
        return Ug * s, RK @ Ug / s, U * value_squares.sqrt()


def zero_unlearn_soft(
    weight: Tensor,
    keys: Tensor,
    residuals: Tensor,
    values: Tensor,
    second_moment: Tensor,
    *,
    zero_weight: float = 1.0,
    forget_weight: float = 50.0,
    retain_weight: float = 15000.0,
    ridge: float = 1.0,
) -> LowRankUpdate:
    """The additive form with all terms of Eq. 4 and no projector.

    Minimizes over X::

        zero_weight ||U^T (W + X) K||^2 + forget_weight ||(W + X) K - V*||^2
            + retain_weight tr(X C X^T) + ridge ||X||^2

    Args:
        weight: W, d_out x d_in.
        keys: K, d_in x n, one column per fact.
        residuals: R, d_out x n.
        values: V, d_out x n; only its column span matters.
        second_moment: C, d_in x d_in, a mean over retain tokens.
        zero_weight: Weight of the zero term.
        forget_weight: Weight of the distance to the neutral targets.
        retain_weight: Weight of the retain term.
        ridge: Weight of the size of the update.

    Returns:
        X, of rank at most n.

    Raises:
        ValueError: Shapes disagree, something is not finite, or ``retain_weight C + ridge I`` is singular.
    """
    W, K, R, V, C = _checked(weight=weight, keys=keys, residuals=residuals, values=values, second_moment=second_moment)
    S = retain_weight * C + ridge * torch.eye(len(C), dtype=C.dtype, device=C.device)
    L = _cholesky(S, "retain_weight C + ridge I")
    whitened = torch.linalg.solve_triangular(L, K, upper=False)
    whitened_update = _additive_optimum(W @ K, whitened, R, V, zero_weight, forget_weight, 1.0)
    right = torch.linalg.solve_triangular(L.mT, whitened_update.right.mT, upper=True).mT
    return _finite(LowRankUpdate(whitened_update.left, right))


def memit(
    weight: Tensor, keys: Tensor, residuals: Tensor, second_moment: Tensor, *, retain_weight: float = 15000.0
) -> LowRankUpdate:
    """MEMIT (arXiv 2210.07229, Eq. 14): ``R K^T (retain_weight C + K K^T)^-1``.

    Args:
        weight: W, d_out x d_in; only its shape is used.
        keys: K, d_in x n, one column per fact.
        residuals: R, d_out x n.
        second_moment: C, d_in x d_in, a mean over retain tokens.
        retain_weight: Weight of C.

    Returns:
        The update, of rank at most n.

    Raises:
        ValueError: Shapes disagree, something is not finite, or the matrix to invert is singular.
    """
    _, K, R, C = _checked(weight=weight, keys=keys, residuals=residuals, second_moment=second_moment)
    solution = _solve_positive_definite(retain_weight * C + K @ K.mT, K, "retain_weight C + K K^T")
    return _finite(LowRankUpdate(R, solution.mT))


def alphaedit(
    weight: Tensor, keys: Tensor, residuals: Tensor, null_space: Tensor, *, ridge: float = 10.0
) -> LowRankUpdate:
    """AlphaEdit (arXiv 2410.02355): ``R K^T Q Q^T (K K^T Q Q^T + ridge I)^-1``, by an n x n system.

    Args:
        weight: W, d_out x d_in; only its shape is used.
        keys: K, d_in x n, one column per fact.
        residuals: R, d_out x n.
        null_space: Q, d_in x q, orthonormal columns.
        ridge: Weight of the size of the update.

    Returns:
        The update, of rank at most n.

    Raises:
        ValueError: Shapes disagree, something is not finite, or the system is singular.
    """
    _, K, R, Q = _checked(weight=weight, keys=keys, residuals=residuals, null_space=null_space)
    projected = Q.mT @ K
    gram = projected.mT @ projected + ridge * torch.eye(K.shape[1], dtype=K.dtype, device=K.device)
    return _finite(LowRankUpdate(R, _solve_positive_definite(gram, (Q @ projected).mT, "K^T Q Q^T K + ridge I")))


def rome(weight: Tensor, key: Tensor, residual: Tensor, second_moment: Tensor) -> LowRankUpdate:
    """ROME (arXiv 2202.05262, Eq. 2): one fact, met exactly: ``r (C^-1 k)^T / (k^T C^-1 k)``.

    Args:
        weight: W, d_out x d_in; only its shape is used.
        key: k, d_in or d_in x 1.
        residual: v* - W k, d_out or d_out x 1.
        second_moment: C, d_in x d_in, a mean over retain tokens.

    Returns:
        The update, of rank 1.

    Raises:
        ValueError: Shapes disagree, there is more than one fact, something is not finite, or C is singular.
    """
    _, k, r, C = _checked(
        weight=weight, keys=key.reshape(len(key), -1), residuals=residual.reshape(len(residual), -1),
        second_moment=second_moment,
    )  # fmt: skip
    if k.shape[1] != 1:
        raise ValueError(f"rome edits one fact at a time, but `key` has {k.shape[1]} columns: call it once per fact.")
    direction = _solve_positive_definite(C, k, "second_moment")
    return _finite(LowRankUpdate(r, direction.mT / (k.mT @ direction)))


def null_space(
    second_moment: Tensor,
    threshold: float,
    criterion: NullSpaceCriterion = "absolute",
    eigh: Eigh = torch.linalg.eigh,
) -> Tensor:
    """Orthonormal basis of the directions in which retain keys (almost) never point.

    Args:
        second_moment: C, d_in x d_in, symmetric.
        threshold: How much of the retain keys a direction may hold and still be free to change.
        criterion: What the threshold means. ``absolute``: eigenvectors with an eigenvalue of at most ``threshold`` are
            kept, in units of C (a squared key entry). ``relative``: of at most ``threshold`` times the largest one.
            ``energy``: as many of the smallest as hold together at most the share ``threshold`` of the trace of C,
            so that retain keys keep the share ``1 - threshold`` of their energy outside the null space.
        eigh: Finds the eigenvectors; one that remembers them saves 9 d_in^3 flop.

    Returns:
        Q, d_in x q, float64.

    Raises:
        ValueError: C is not square or not finite, the criterion is unknown, or no direction is free.
    """
    (C,) = _checked(second_moment=second_moment)
    eigenvalues, eigenvectors = eigh(C)
    if criterion == "absolute":
        kept = eigenvalues <= threshold
    elif criterion == "relative":
        kept = eigenvalues <= threshold * eigenvalues[-1]
    elif criterion == "energy":
        energy = eigenvalues.clamp(min=0)
        kept = energy.cumsum(0) <= threshold * energy.sum()
    else:
        raise ValueError(f"criterion must be one of {', '.join(get_args(NullSpaceCriterion))}, but is {criterion!r}.")
    if not kept.any():
        low, middle, high = (eigenvalues[i].item() for i in (0, len(C) // 2, -1))
        raise ValueError(
            f"the null space is empty: no direction of the second moment is within {criterion} threshold "
            f"{threshold:g}; its eigenvalues range from {low:.3g} through a median of {middle:.3g} to {high:.3g}, and "
            f"their sum is {eigenvalues.sum().item():.3g}: raise the threshold."
        )
    basis: Tensor = eigenvectors[:, kept]
    return basis


def _additive_optimum(
    outputs: Tensor,
    features: Tensor,
    residuals: Tensor,
    values: Tensor,
    zero_weight: float,
    forget_weight: float,
    ridge: float,
) -> LowRankUpdate:
    """Minimize ``zero ||U^T (WK + Y F)||^2 + forget ||Y F - R||^2 + ridge ||Y||^2`` over Y (d_out x q).

    ``outputs`` is W K (d_out x n) and ``features`` F (q x n). Y has its rows in the span of F's left
    singular vectors; in them the problem separates into one small problem for each singular value.
    """
    U = orthonormal_basis(values)
    left, s, right = _thin_svd(features)
    along = U @ (U.mT @ outputs) @ right.mT
    wanted = residuals @ right.mT
    # Column i solves ((forget I + zero U U^T) s_i^2 + ridge I) y = rhs_i.
    rhs = (forget_weight * wanted - zero_weight * along) * s
    inside = U @ (U.mT @ rhs)
    curvature = forget_weight * s.square() + ridge
    inside_curvature = curvature + zero_weight * s.square()
    return _finite(LowRankUpdate((rhs - inside) / curvature + inside / inside_curvature, left.mT))


def orthonormal_basis(values: Tensor) -> Tensor:
    """U, d_out x rank: orthonormal basis of the column span of ``values``."""
    return _thin_svd(values)[0]


def basis_from_sums(value_sums: Tensor) -> Tensor:
    """The same from ``V V^T``, d_out x d_out, in place of V."""
    return _positive_eigenpairs(value_sums)[1]


def _thin_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors, singular values and right vectors (rows), without those that are zero up to rounding."""
    left, s, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = s > RANK_TOLERANCE * s.max() if s.numel() else s > 0
    return left[:, kept], s[kept], right[kept]


def _positive_eigenpairs(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of ``M M^T``, without those for which M's singular value is zero up to rounding."""
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)
    tolerance = max(RANK_TOLERANCE**2, len(gram) * torch.finfo(gram.dtype).eps)
    kept = eigenvalues > tolerance * eigenvalues.max() if eigenvalues.numel() else eigenvalues > 0
    return eigenvalues[kept], eigenvectors[:, kept]


def _solve_positive_definite(matrix: Tensor, rhs: Tensor, name: str) -> Tensor:
    return torch.cholesky_solve(rhs, _cholesky(matrix, name))


def _cholesky(matrix: Tensor, name: str) -> Tensor:
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(matrix)
    if info.item():
        raise ValueError(
            f"{name} is not positive definite (size {len(matrix)}, breaks down at {info.item()}): the retain keys do "
            "not span the space or the weight is rank-deficient. Use more retain text, or a larger ridge."
        )
    return factor


def _checked(**tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in float64, after a check of shapes against the symbols of this module and of finiteness."""
    symbols = {
        "weight": ("d_out", "d_in"),
        "keys": ("d_in", "n"),
        "residuals": ("d_out", "n"),
        "values": ("d_out", None),
        "second_moment": ("d_in", "d_in"),
        "null_space": ("d_in", None),
        "key_sums": ("d_in", "d_in"),
        "residual_sums": ("d_out", "d_in"),
        "value_sums": ("d_out", "d_out"),
    }
    sizes: dict[str, tuple[int, str]] = {}
    for name, tensor in tensors.items():
        if tensor.dim() != 2:
            raise ValueError(f"`{name}` must be a matrix, but has shape {tuple(tensor.shape)}.")
        for symbol, size in zip(symbols[name], tensor.shape, strict=True):
            if symbol is None:
                continue
            expected, source = sizes.setdefault(symbol, (size, name))
            if expected != size:
                raise ValueError(
                    f"`{name}` has shape {tuple(tensor.shape)}, where {symbol} should be {expected} as in `{source}`: "
                    "facts are columns, keys are d_in long, residuals and values d_out."
                )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"`{name}` holds NaN or infinite entries: nothing was solved.")
    return tuple(tensor.detach().double() for tensor in tensors.values())


def _finite(update: LowRankUpdate) -> LowRankUpdate:
    if not (torch.isfinite(update.left).all() and torch.isfinite(update.right).all()):
        raise ValueError("the solution holds NaN or infinite entries: check the weights of the terms.")
    return update
