"""Identify the requests that a model contains, from its weights alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from zu_lightning.ledger.entries import RequestEntry
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import OTHERS, check_base, digests_of, layers_in
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate

NEAR = 0.05
"""Tolerance for the coefficient of an update that is contained (1) or absent (0)."""


@dataclass(frozen=True)
class Identification:
    """The requests that a model contains.

    Attributes:
        coefficients: For each request, the coefficient of its update in the weights: 1 if contained, 0 if absent.
        unexplained: Norm of what no update explains, relative to the norm of the difference from the base model;
            0 if there is no difference.
        line: Number of the last line after which the weights were exactly these; 0 for the base model, ``None`` if
            there is no such line.
        others_differ: Whether weights that no request edits differ from the base model's.
    """

    coefficients: Mapping[int, float]
    unexplained: float
    line: int | None
    others_differ: bool

    @property
    def contained(self) -> list[int]:
        """Numbers of the requests that are in the model."""
        return [number for number, value in self.coefficients.items() if abs(value - 1) <= NEAR]

    @property
    def partial(self) -> list[int]:
        """Numbers of the requests that are neither fully contained nor absent."""
        return [number for number, value in self.coefficients.items() if min(abs(value - 1), abs(value)) > NEAR]

    def matches(self, numbers: Sequence[int]) -> bool:
        """Whether the model contains exactly these requests, and nothing else."""
        return self.contained == numbers and not self.partial and not self.others_differ and self.unexplained < 0.01


def identify(ledger: Ledger, lm: EditableLM, base: EditableLM) -> Identification:
    """Identify the requests of a ledger that a model contains.

    The difference from the base model is fitted, by least squares, by the updates of all requests ever recorded, so
    that any subset is recognized, also after rounding.

    Args:
        ledger: Ledger of the project.
        lm: The model.
        base: The base model.

    Raises:
        InputError: ``base`` is not the base model of the project, ``lm`` is another model, or a file of the ledger was
            modified.
    """
    layers = layers_in(ledger.base)
    check_base(base, ledger.base, "base")
    requests = [entry for entry in ledger.entries if isinstance(entry, RequestEntry)]
    updates = {entry.number: ledger.previous(entry).updates for entry in requests}
    differences = {}
    for layer in layers:
        if lm.weight(layer).shape != base.weight(layer).shape:
            raise InputError("model", lm.name_or_path, "it is not a model of this project: its layers differ in size.")
        differences[layer] = lm.weight(layer).double() - base.weight(layer).double()
    gram = torch.tensor([[_inner(a, b) for b in updates.values()] for a in updates.values()], dtype=torch.float64)
    products = [
        sum(
            ((differences[layer] @ one.right.to(differences[layer]).mT) * one.left.to(differences[layer])).sum().item()
            for layer, one in update.items()
        )
        for update in updates.values()
    ]
    right_side = torch.tensor(products, dtype=torch.float64)[:, None]
    solution = torch.linalg.lstsq(gram, right_side, driver="gelsd").solution[:, 0]
    coefficients = dict(zip(updates, solution.tolist(), strict=True))
    total = sum(one.square().sum().item() for one in differences.values())
    for number, coefficient in coefficients.items():
        for layer, update in updates[number].items():
            differences[layer] -= coefficient * update.dense().to(differences[layer])
    rest = sum(one.square().sum().item() for one in differences.values())
    found, of_base = digests_of(lm, layers), digests_of(base, layers)
    states = {0: ledger.base} | {entry.number: ledger.base | dict(entry.weights["after"]) for entry in ledger.entries}
    exact = [line for line, state in states.items() if all(found.get(name) == state[name] for name in state)]
    return Identification(
        coefficients,
        (rest / total) ** 0.5 if total else 0.0,
        exact[-1] if exact else None,
        found.get(OTHERS) != of_base.get(OTHERS),
    )


def _inner(first: Mapping[int, LowRankUpdate], second: Mapping[int, LowRankUpdate]) -> float:
    """Inner product of two updates, as vectors of all entries of all layers."""
    pairs = [(first[layer], second[layer]) for layer in first if layer in second]
    return sum(((one.left.mT @ two.left) * (one.right @ two.right.mT)).sum().item() for one, two in pairs)
