"""Attacks as a measurement: the model that is attacked, and a gold model that was never trained on the facts."""

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.leak import Leak
from zu_lightning.attacks.membership import reference
from zu_lightning.attacks.presets import Preset, attacks_of, chances, run_attacks
from zu_lightning.editing.request import Request
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.loading import check_model
from zu_lightning.lm.weights import check_finite
from zu_lightning.runtime.errors import require_positive
from zu_lightning.runtime.timing import Monitor
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

KNOWN = 0.5
"""A model that gives an answer with more than this probability knows the fact."""
ALLOWED = 0.1
"""Largest share of the facts that a gold model may know."""


Losses = tuple[tuple[float, ...], ...]
"""For each fact, the mean log-probabilities of statements, see :func:`zu_lightning.attacks.membership.reference`."""


class Gold(NamedTuple):
    """Results of the gold model: what the membership attack compares with, and the scores of attacks."""

    losses: Losses
    scores: dict[str, Tensor]


class Attacks:
    """What can still be recovered of the facts to forget, beside a gold model that was never trained on them.

    Args:
        preset: Which attacks: ``quick`` (forward passes only), ``full`` (also samples, quantization, and relearning),
            or ``none``.
        gold: Hub id or directory of a model that was trained in the same way, but not on the facts. Without one there
            is no verdict. One that knows the facts, or has another tokenizer, is left out with a warning.
        facts: Maximum number of facts to attack: the first of those to forget.
    """

    name = "attacks"

    def __init__(self, preset: Preset = "quick", gold: str | None = None, facts: int = 100) -> None:
        require_positive("facts", facts)
        self.preset, self.gold, self.facts = preset, gold, facts
        self._prepared: tuple[Request, AttackContext, Gold | None] | None = None

    def applies(self, request: Request) -> bool:
        """Whether there is anything to measure."""
        return self.preset != "none"

    def check(self) -> None:
        """Check the gold model before anything is computed."""
        self._prepared = None
        if self.gold is not None:
            check_model(self.gold)

    def measure(
        self,
        lm: EditableLM,
        request: Request,
        *,
        layers: Sequence[int] = (),
        updates: Mapping[int, LowRankUpdate] | None = None,
        monitor: Monitor | None = None,
    ) -> dict[str, dict[str, Tensor]]:
        """Attack a model, and the first time also the gold model.

        Args:
            lm: The model.
            request: The facts to forget, and the others that attacks need.
            layers: Layers that may have been edited.
            updates: What was added to weights, by layer; ``None`` if it is not known as low-rank factors.
            monitor: Shows progress.

        Returns:
            For the ``model``, for ``gold``, if there is one, and for ``chance``, where it is known, the scores of each
            fact, by name.
        """

        def attack(
            target: EditableLM, name: str, losses: Losses | None, added: Mapping[int, LowRankUpdate] | None
        ) -> dict[str, Tensor]:
            attacks = attacks_of(self.preset, len(target.layers), added, losses)
            return run_attacks(target, context, attacks, open_cache(request.cache, target, layers), monitor, name)

        if self._prepared is None or self._prepared[0] is not request:
            context, of_gold = AttackContext.of(request, self.facts), None
            gold = None if self.gold is None else usable_gold(self.gold, lm, context)
            if gold is not None:
                losses = reference(gold, context)
                of_gold = Gold(losses, attack(gold, "the gold model", losses, {}))
            self._prepared = request, context, of_gold
        _, context, known = self._prepared
        found = {
            "model": attack(lm, "the model", known and known.losses, updates),
            "chance": chances(attacks_of(self.preset, len(lm.layers)), context),
        }
        return found if known is None else found | {"gold": known.scores}


def usable_gold(path: str, lm: EditableLM, context: AttackContext) -> EditableLM | None:
    """Load a gold model; ``None``, with a warning, if nothing can be compared with it."""
    dtype = str(lm.model.dtype).removeprefix("torch.")
    gold = EditableLM.from_pretrained(path, dtype=dtype).to(lm.device)
    check_finite(gold, "gold")
    reason = unfit(gold, lm, context)
    if not reason:
        return gold
    log.warning(
        "attacks.gold %s %s: it is left out, and there is no verdict. docs/erase.md explains how to train one for "
        "other facts.", path, reason,
    )  # fmt: skip
    return None


def unfit(gold: EditableLM, lm: EditableLM, context: AttackContext) -> str:
    """Why a model cannot be gold for another one and these facts; empty if it can."""
    if gold.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        return "has another tokenizer than the model that forgets the facts"
    known = (Leak(samples=1)(gold, context)["leak"] > KNOWN).double().mean().item()
    return f"knows {100 * known:.0f}% of the facts to forget" if known > ALLOWED else ""
