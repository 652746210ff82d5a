"""Taking a request back."""

from dataclasses import dataclass
from math import inf, isfinite

from zu_lightning.editing.request import PreviousRequest
from zu_lightning.ledger.entries import RequestEntry, UndoEntry
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.ledger.recording import CONFIGURATION
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import digests_of, layers_in
from zu_lightning.lm.updates import apply_updates
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import now

DEPENDS = 0.05
"""A later request depends on an earlier one that adds more than this share of what it adds itself at its keys."""


@dataclass(frozen=True)
class UndoPlan:
    """What taking a request back means.

    Attributes:
        number: Of the request.
        dependence: How much each later request depends on it, by number; infinite if that cannot be known.
    """

    number: int
    dependence: dict[int, float]

    @property
    def again(self) -> list[int]:
        """Numbers of the later requests that depend on it, and are to be solved again."""
        return [number for number, share in self.dependence.items() if share > DEPENDS]


def dependence(earlier: PreviousRequest, later: PreviousRequest) -> float:
    """How much a later request depends on an earlier one.

    The later request was solved for the outputs that its facts had *with* the earlier update. What the earlier update
    adds at the keys of the later facts, ``||U_earlier K_later||``, goes when it is taken back; it is measured against
    what the later update adds there, ``||U_later K_later||``. If that is next to nothing at every layer, then the later
    facts have the same outputs, and at higher layers the same keys, as before.

    Returns:
        The largest share of all layers; infinite if the earlier request edited a layer at which the keys of the later
        one are not known.
    """
    shares = [0.0]
    for layer, one in earlier.layers.items():
        if layer not in later.layers:
            return inf
        keys, own = later.layers[layer].keys, later.layers[layer].update
        lost = (one.update.left @ (one.update.right @ keys)).norm()
        shares.append((lost / (own.left @ (own.right @ keys)).norm()).item())
    return max(shares)


def plan(ledger: Ledger, number: int) -> UndoPlan:
    """What taking a request back would mean; changes nothing.

    A request that waits to be solved again is subtracted already, and so is what depends on it: it only stops waiting.

    Raises:
        InputError: There is no such request, it was taken back, or one that depends on it cannot be solved again.
    """
    active = ledger.active
    entry = ledger.request(number)
    if number in ledger.waiting:
        return UndoPlan(number, {})
    if entry not in active:
        raise InputError("number", number, "this request was taken back already.")
    undone = ledger.earlier(entry)
    shares: dict[int, float] = {}
    left = UndoPlan(number, shares)
    gone = [undone]
    for later in active:
        if later.number > number:
            here = ledger.earlier(later)
            # What is solved again may come out differently, so that what depends on it is solved again, too.
            shares[later.number] = max(dependence(one, here) for one in gone)
            if later.number in left.again:
                _check_solvable(ledger, later)
                gone.append(here)
    return left


def _check_solvable(ledger: Ledger, entry: RequestEntry) -> None:
    folder = ledger.folder_of(entry.number)
    if not ledger.facts_of(entry.number) or not (folder / CONFIGURATION).exists():
        remedy = f"request {entry.number} depends on it and cannot be solved again: its texts were not kept."
        raise InputError("number", entry.number, remedy)


def take_back(ledger: Ledger, todo: UndoPlan, base: EditableLM) -> Ledger:
    """Record that a request was taken back, and those that depend on it with it; the caller holds the lock.

    Args:
        ledger: Of the project.
        todo: What is to be done.
        base: The base model; afterwards it has the updates of the requests that are left.

    Returns:
        The ledger with one more line.
    """
    taken = {todo.number, *todo.again}
    left = [entry for entry in ledger.active if entry.number not in taken]
    apply_updates(base, [ledger.earlier(entry).updates for entry in left])
    return ledger.append(
        UndoEntry(
            number=len(ledger.entries) + 1,
            time=now(),
            undone=todo.number,
            again=todo.again,
            dependence={str(number): share if isfinite(share) else None for number, share in todo.dependence.items()},
            weights={"after": digests_of(base, layers_in(ledger.base))},
        )
    )
