"""Revert a request, with the later ones that depend on it."""

from dataclasses import dataclass
from math import inf, isfinite

from zu_lightning.editing.request import PreviousRequest
from zu_lightning.ledger.entries import RevertEntry
from zu_lightning.ledger.files import CONFIGURATION
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import digests_of, layers_in
from zu_lightning.lm.updates import apply_updates
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import now

DEPENDS = 0.05
"""Dependence above which a later request has to be solved again."""


@dataclass(frozen=True)
class RevertPlan:
    """Consequences of reverting a request.

    Attributes:
        number: Number of the request.
        dependence: How much each later request depends on it, by number; infinite if that is unknown.
    """

    number: int
    dependence: dict[int, float]

    @property
    def dependent(self) -> list[int]:
        """Numbers of the later requests that depend on it, and have to be solved again."""
        return [number for number, share in self.dependence.items() if share > DEPENDS]


def dependence(previous: PreviousRequest, later: PreviousRequest) -> float:
    """How much a later request depends on a previous one.

    The later request was solved for the outputs that its facts had *with* the previous update. Reverting removes what
    that update adds at the keys of the later facts, ``||U_previous K_later||``; it is measured against what the later
    update adds there, ``||U_later K_later||``. If that is close to zero at every layer, then the later facts have the
    same outputs, and at higher layers the same keys, as before.

    Returns:
        The largest ratio of all layers; infinite if the previous request edited a layer at which the keys of the later
        one are unknown.
    """
    ratios = [0.0]
    for layer, one in previous.layers.items():
        if layer not in later.layers:
            return inf
        keys, own = later.layers[layer].keys, later.layers[layer].update
        removed = (one.update.left @ (one.update.right @ keys)).norm()
        ratios.append((removed / (own.left @ (own.right @ keys)).norm()).item())
    return max(ratios)


def plan_revert(ledger: Ledger, number: int) -> RevertPlan:
    """The consequences of reverting a request; changes nothing.

    A request that waits to be solved again is subtracted already, with its dependents: it only stops waiting.

    Raises:
        InputError: There is no such request, it was reverted already, or a dependent one cannot be solved again.
    """
    entry = ledger.request(number)
    if number in ledger.waiting:
        return RevertPlan(number, {})
    if entry not in ledger.active:
        raise InputError("number", number, "this request was reverted already.")
    plan, removed = RevertPlan(number, {}), [ledger.previous(entry)]
    for later in ledger.active:
        if later.number > number:
            request = ledger.previous(later)
            # A request that is solved again may get another update, so that its own dependents are solved again, too.
            plan.dependence[later.number] = max(dependence(one, request) for one in removed)
            if later.number in plan.dependent:
                if not request.facts or not (ledger.folder_of(later.number) / CONFIGURATION).exists():
                    remedy = f"request {later.number} depends on it and cannot be solved again: its texts were deleted."
                    raise InputError("number", later.number, remedy)
                removed.append(request)
    return plan


def revert(ledger: Ledger, plan: RevertPlan, base: EditableLM) -> Ledger:
    """Record that a request and its dependents were reverted; the caller holds the lock.

    Args:
        ledger: Ledger of the project.
        plan: Consequences of reverting the request.
        base: The base model; afterwards it has the updates of the remaining requests.

    Returns:
        The ledger with one more line.
    """
    reverted = {plan.number, *plan.dependent}
    remaining = [entry for entry in ledger.active if entry.number not in reverted]
    apply_updates(base, [ledger.previous(entry).updates for entry in remaining])
    shares = {str(number): share if isfinite(share) else None for number, share in plan.dependence.items()}
    weights = {"after": digests_of(base, layers_in(ledger.base))}
    return ledger.append(RevertEntry(len(ledger.entries) + 1, now(), plan.number, plan.dependent, shares, weights))
