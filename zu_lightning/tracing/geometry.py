"""Statistics of hidden states: principal components, movement of a group, and separability of two groups."""

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from torch import Tensor

FOLDS = 5
"""Number of folds of the classifier's cross-validation; fewer if there are fewer facts."""

RIDGE = 1.0
"""Weight of the identity that is added to the classifier's covariance, in units of its mean eigenvalue over all d
dimensions."""


def principal_components(states: Tensor, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Principal components of states, in float64.

    Args:
        states: n x d.
        count: Number of components.

    Returns:
        The mean, d; the components, count x d, orthonormal, each with its largest entry positive; and the share of the
        variance that each of them explains, count. Components that do not exist (n or d is too small, or all states are
        equal) are zero.
    """
    states = states.double()
    components, explained = states.new_zeros(count, states.shape[1]), states.new_zeros(count)
    if (states != states[0]).any():
        pca = PCA(min(count, *states.shape), svd_solver="full").fit(states.cpu().numpy())
        components[: pca.n_components_] = torch.from_numpy(pca.components_)
        explained[: pca.n_components_] = torch.from_numpy(pca.explained_variance_ratio_)
    return states.mean(0), components, explained


def movement(before: Tensor, after: Tensor) -> tuple[float, float] | None:
    """Distance that a group of facts has moved, in units of the standard deviation within the group before.

    The unit is ``sqrt(trace(cov(before)))``, with the sample covariance (n - 1): the typical distance of the group's
    facts from their mean. At 1 the group, or each fact, has moved as far as its facts differ.

    Args:
        before: n x d.
        after: n x d, of the same facts in the same order.

    Returns:
        The distance between the means before and after, and the root mean square of the distances between each fact's
        states before and after, which is at least as large: facts that move in all directions leave their mean in
        place. ``None`` if there is no unit: fewer than two facts, or no differences between them.
    """
    if len(before) < 2:
        return None
    deviation = before.double().var(0).sum().sqrt()
    if deviation == 0:
        return None
    moves = (after.double() - before.double()) / deviation
    return moves.mean(0).norm().item(), moves.square().sum(1).mean().sqrt().item()


def separability(before: Tensor, after: Tensor, seed: int = 0) -> float | None:
    """Accuracy (AUC) of a linear classifier that tells states after an edit from states before it, on held-out facts.

    The classifier is Fisher's linear discriminant with shrinkage: its direction is ``(S + c I)^-1 (mean(after) -
    mean(before))``, with the covariance S within both classes and c = ``RIDGE`` times its mean eigenvalue. Facts are
    split at random into ``FOLDS`` folds, a fact's two states always being in the same one; each fold is scored by a
    classifier that was trained on the others.

    Args:
        before: n x d.
        after: n x d, of the same facts.
        seed: Seed of the folds.

    Returns:
        Area under the ROC curve of all scores: 0.5 if before and after cannot be told apart (below it by chance only),
        1 if every state after scores higher than every state before. ``None`` for fewer than three facts, or facts that
        do not differ.
    """
    count = len(before)
    if count < 3 or (before == before[0]).all():
        return None
    if torch.equal(before, after):
        return 0.5
    # The classifier depends on inner products only: coordinates in the span of the states are enough.
    states = torch.cat([before, after]).double().cpu().numpy()
    x = PCA(svd_solver="full").fit_transform(states)
    # (1 - shrinkage) S + shrinkage tr(S) / rank I is proportional to S + RIDGE tr(S) / d I.
    shrinkage = RIDGE * x.shape[1] / (RIDGE * x.shape[1] + states.shape[1])
    labels, scores = np.repeat([0, 1], count), np.zeros(2 * count)
    for fold in torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tensor_split(min(FOLDS, count)):
        held_out = np.isin(np.arange(2 * count) % count, fold)
        classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        classifier.fit(x[~held_out], labels[~held_out])
        scores[held_out] = classifier.decision_function(x[held_out])
    # Scores that differ only by rounding are ties.
    return float(roc_auc_score(labels, (scores / (np.abs(scores).max() or 1.0)).round(9)))
