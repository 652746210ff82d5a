"""Which requests does a model contain? Found out from its weights alone."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zu_lightning.ledger.entries import RequestEntry
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import OTHERS, check_base, digests_of, layers_in
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate

NEAR = 0.05
"""A request is in a model if its update is there this exactly, and is not if it is as near to zero."""


@dataclass(frozen=True)
class Containment:
    """What a model contains.

    Attributes:
        shares: For each request, how much of its update is in the weights: 1 if it is in there, 0 if it is not.
        unexplained: Norm of what no update explains, as a share of the norm of all differences from the base model;
            0 if there are none.
        line: Number of the last line after which the weights were exactly these; 0 for the base model, ``None`` if
            they were never these to the last bit.
        others_differ: Whether weights that no request touches differ from the base model's.
    """

    shares: Mapping[int, float]
    unexplained: float
    line: int | None
    others_differ: bool

    @property
    def contained(self) -> list[int]:
        """Numbers of the requests that are in the model."""
        return [number for number, share in self.shares.items() if abs(share - 1) <= NEAR]

    @property
    def partly(self) -> list[int]:
        """Numbers of the requests of which something else than all or nothing is in the model."""
        return [number for number, share in self.shares.items() if min(abs(share - 1), abs(share)) > NEAR]


def containment(ledger: Ledger, lm: EditableLM, base: EditableLM) -> Containment:
    """Which requests of a ledger a model contains.

    The difference from the base model is fitted, by least squares, by the updates of all requests that were ever
    recorded, so that any subset is recognized, and so is one whose weights were rounded.

    Args:
        ledger: Of the project.
        lm: The model.
        base: The base model.

    Raises:
        InputError: ``base`` is not the base model of the project, ``lm`` is another model, or a file of the ledger is
            not as it was written.
    """
    layers = layers_in(ledger.base)
    check_base(base, ledger.base, "base")
    requests = [entry for entry in ledger.entries if isinstance(entry, RequestEntry)]
    updates = {entry.number: ledger.earlier(entry).updates for entry in requests}
    differences = {}
    for layer in layers:
        if lm.weight(layer).shape != base.weight(layer).shape:
            raise InputError("model", lm.name_or_path, "it is not a model of this project: its layers differ in size.")
        differences[layer] = lm.weight(layer).double() - base.weight(layer).double()
    numbers = list(updates)
    gram = torch.tensor([[_inner(updates[i], updates[j]) for j in numbers] for i in numbers], dtype=torch.float64)
    along = torch.tensor([_along(differences, updates[i]) for i in numbers], dtype=torch.float64)
    shares = torch.linalg.lstsq(gram, along[:, None], driver="gelsd").solution[:, 0]
    left, total = 0.0, sum(one.square().sum().item() for one in differences.values())
    for layer, difference in differences.items():
        rest = difference.clone()
        for number, share in zip(numbers, shares.tolist(), strict=True):
            if layer in updates[number]:
                rest -= share * updates[number][layer].dense().to(rest)
        left += rest.square().sum().item()
    here, there = digests_of(lm, layers), digests_of(base, layers)
    return Containment(
        dict(zip(numbers, shares.tolist(), strict=True)),
        (left / total) ** 0.5 if total else 0.0,
        _line(ledger, here),
        here.get(OTHERS) != there.get(OTHERS),
    )


def _line(ledger: Ledger, here: Mapping[str, str]) -> int | None:
    """The last line after which the weights were these."""
    states = {0: ledger.base}
    for entry in ledger.entries:
        states[entry.number] = ledger.base | dict(entry.weights["after"])
    exact = [number for number, state in states.items() if all(here.get(name) == state[name] for name in state)]
    return exact[-1] if exact else None


def _inner(some: Mapping[int, LowRankUpdate], other: Mapping[int, LowRankUpdate]) -> float:
    """Inner product of two updates, as vectors of all entries of all layers."""
    pairs = [(some[layer], other[layer]) for layer in some if layer in other]
    return sum(((one.left.mT @ two.left) * (one.right @ two.right.mT)).sum().item() for one, two in pairs)


def _along(differences: Mapping[int, Tensor], update: Mapping[int, LowRankUpdate]) -> float:
    return sum(
        ((differences[layer] @ one.right.to(differences[layer]).mT) * one.left.to(differences[layer])).sum().item()
        for layer, one in update.items()
    )
