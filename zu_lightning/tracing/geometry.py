"""Clouds of states: in which directions they vary, how far a cloud has moved, and whether two can be told apart."""

import torch
from torch import Tensor

FOLDS = 5
"""Number of parts into which facts are cut for the classifier's cross-validation; fewer if there are fewer facts."""

RIDGE = 1.0
"""What is added to the classifier's covariance, in units of its mean eigenvalue over all d dimensions."""


def principal_components(states: Tensor, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """The directions in which states vary most, by the singular value decomposition of the centered states, in float64.

    Args:
        states: n x d.
        count: Number of components.

    Returns:
        The mean, d; the components, count x d, orthonormal, each with its largest entry positive; and the share of the
        variance that each of them explains, count. Components that do not exist (n or d is too small) are zero.
    """
    states = states.double()
    mean = states.mean(0)
    _, s, right = torch.linalg.svd(states - mean, full_matrices=False)
    components, explained = states.new_zeros(count, states.shape[1]), states.new_zeros(count)
    found = min(count, len(s))
    largest = right[:found].gather(1, right[:found].abs().argmax(1, keepdim=True))
    components[:found] = right[:found] * torch.where(largest < 0, -1.0, 1.0)
    variance = s.square()
    explained[:found] = variance[:found] / variance.sum() if variance.sum() > 0 else 0.0
    return mean, components, explained


def movement(before: Tensor, after: Tensor) -> tuple[float, float] | None:
    """How far a group of facts has moved, in units of the standard deviation within the group before.

    The unit is ``sqrt(trace(cov(before)))``, with the covariance of a sample (n - 1): the distance from their mean at
    which the group's facts typically lie. So at 1 the group, or each fact, has moved as far as its facts differ.

    Args:
        before: n x d.
        after: n x d, of the same facts in the same order.

    Returns:
        The distance between the means before and after, and the root mean square of the distances between each fact's
        states before and after, which is at least as large: facts that move in all directions leave their mean where it
        was. ``None`` if there is no unit: fewer than two facts, or no differences between them.
    """
    if len(before) < 2:
        return None
    deviation = before.double().var(0).sum().sqrt()
    if deviation == 0:
        return None
    moves = (after.double() - before.double()) / deviation
    return moves.mean(0).norm().item(), moves.square().sum(1).mean().sqrt().item()


def separability(before: Tensor, after: Tensor, seed: int = 0) -> float | None:
    """How well a linear classifier tells states after an edit from states before it, of facts that it has not seen.

    The classifier is Fisher's linear discriminant with shrinkage: a state's score is ``x . (S + c I)^-1 (mean(after) -
    mean(before))``, with the covariance S within both classes and c = ``RIDGE`` times its mean eigenvalue. Facts are
    cut at random into ``FOLDS`` folds, a fact's two states always being in the same one; each fold is scored, relative
    to the mean of both classes, by a classifier of the others. The result is the area under the ROC curve of all
    scores.

    Args:
        before: n x d.
        after: n x d, of the same facts.
        seed: Seed of the folds.

    Returns:
        0.5 if before and after cannot be told apart (below it by chance only), 1 if every state after scores higher
        than every state before. ``None`` for fewer than two facts.
    """
    count = len(before)
    if count < 2:
        return None
    dimensions = before.shape[1]
    # All that the classifier sees of states are inner products, which coordinates in the span of the states preserve.
    states = torch.cat([before, after]).double()
    left, s, _ = torch.linalg.svd(states - states.mean(0), full_matrices=False)
    x = (left * s).view(2, count, -1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(x.device)
    scores = x.new_zeros(2, count)
    for fold in order.tensor_split(min(FOLDS, count)):
        others = torch.ones(count, dtype=torch.bool, device=x.device)
        others[fold] = False
        trained = x[:, others]
        means = trained.mean(1)
        within = (trained - means[:, None]).flatten(0, 1)
        S = within.T @ within / len(within)
        # Without any variation within the classes the discriminant is the difference of their means.
        penalty = RIDGE * S.trace().item() / dimensions or 1.0
        apart = means[1] - means[0]
        apart = torch.where(apart.abs() > 1e-12 * x.abs().max(), apart, 0.0)  # the rest is rounding
        direction = torch.linalg.solve(S + penalty * torch.eye(len(S), dtype=S.dtype, device=S.device), apart)
        scores[:, fold] = (x[:, fold] - means.mean(0)) @ direction
    return _area_under_curve(scores[1], scores[0])


def _area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """Share of the pairs in which the positive score is higher; ties, also those up to rounding, count half."""
    difference = positive[:, None] - negative[None]
    rounding = 1e-9 * torch.cat([positive, negative]).abs().max()
    return ((difference > rounding).double() + (difference.abs() <= rounding).double() / 2).mean().item()
