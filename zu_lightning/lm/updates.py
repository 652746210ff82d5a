"""Add updates to weights, and sum several updates into one."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from zu_lightning.lm.editable import EditableLM
from zu_lightning.solvers import LowRankUpdate

Updates = Mapping[int, LowRankUpdate]
"""Updates by layer."""


@dataclass(frozen=True)
class EditReport:
    """Effect of an update on the stored weight.

    Attributes:
        relative_norm: Frobenius norm of the update divided by that of the weight before it.
        rank: Rank of the update (an upper bound: the width of its factors).
        stored_error: Norm of (change of the stored weight - update) divided by the norm of the update: precision lost
            to rounding to the weight's dtype.
    """

    relative_norm: float
    rank: int
    stored_error: float


def apply_update(lm: EditableLM, layer: int, update: LowRankUpdate) -> EditReport:
    """Add an update to a layer's output projection: computed in float64, rounded to the weight's dtype once.

    Args:
        lm: The model; its weight is changed in place.
        layer: Index of the layer, from 0.
        update: Factors of the update.

    Returns:
        The stored change, compared with the update.

    Raises:
        ValueError: The update holds NaN or infinite entries; the weight is then unchanged.
    """
    before = lm.weight(layer).detach().double()
    change = update.dense().detach().to(before)
    if not torch.isfinite(change).all():
        raise ValueError(f"the update of layer {layer} holds NaN or infinite entries: the weight is unchanged.")
    lm.set_weight(layer, before + change)
    error = (lm.weight(layer).detach().double() - before - change).norm()
    size = change.norm()
    return EditReport(
        relative_norm=(size / before.norm()).item(),
        rank=update.rank,
        stored_error=(error / size).item() if size > 0 else 0.0,
    )


def apply_updates(lm: EditableLM, several: Iterable[Updates]) -> None:
    """Add several updates to a model's weights, one after the other; each is rounded to the weights' dtype."""
    for updates in several:
        for layer, update in updates.items():
            apply_update(lm, layer, update)


@contextmanager
def edited(lm: EditableLM, updates: Updates) -> Iterator[None]:
    """Within this context the updates are added to the weights."""
    before = {layer: lm.weight(layer).clone() for layer in updates}
    try:
        apply_updates(lm, [updates])
        yield
    finally:
        for layer, weight in before.items():
            lm.set_weight(layer, weight)


def summed_update(updates: Iterable[LowRankUpdate]) -> LowRankUpdate:
    """Several updates of one weight as a single one, by joining their factors."""
    factors = [(update.left, update.right) for update in updates]
    return LowRankUpdate(torch.cat([left for left, _ in factors], 1), torch.cat([right for _, right in factors]))


def summed_updates(several: Iterable[Updates]) -> dict[int, LowRankUpdate]:
    """Several updates of a model as a single one, by layer."""
    pairs = [pair for updates in several for pair in updates.items()]
    return {layer: summed_update(u for at, u in pairs if at == layer) for layer in sorted({at for at, _ in pairs})}
