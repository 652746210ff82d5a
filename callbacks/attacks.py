"""Attacks before and after a fit, and on a model that never knew."""

import logging

from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.afterwards import Afterwards
from zu_lightning import EditableLM, UnlearnModule
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.leak import Leak
from zu_lightning.attacks.membership import reference
from zu_lightning.attacks.presets import Suite, attacks_of, run_attacks
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.loading import check_model
from zu_lightning.lm.weights import check_finite
from zu_lightning.runtime.errors import require_positive

log = logging.getLogger(__name__)

MODELS = {
    "base": "the unedited model",
    "edited": "the edited model",
    "gold": "the gold model, which never knew these facts",
}
"""What the models that are attacked are called in the log."""

KNOWN = 0.5
"""A model that gives an answer with more than this probability knows the fact."""
ALLOWED = 0.1
"""Share of the facts that gold may seem to know."""


class Attacks(Afterwards):
    """Find out what is left of the forgotten facts, beside the unedited model and one that never knew them.

    Args:
        suite: Which attacks: ``quick`` (forward passes only), ``full`` (samples, quantization, and relearning, too), or
            ``none``.
        facts: Maximum number of facts to attack: the first of those to forget.
        gold: Hub id or directory of a model that was trained in the same way but never knew the facts. Without one
            there is no verdict. One that knows the facts, or has another tokenizer, is left out with a warning.
    """

    def __init__(self, suite: Suite = "quick", gold: str | None = None, facts: int = 100) -> None:
        require_positive("facts", facts)
        self.suite, self.gold, self.facts = suite, gold, facts
        self.exam: AttackContext | None = None
        self.reference: tuple[tuple[float, ...], ...] | None = None
        """What gold says of statements about the facts and about unknown subjects."""
        self.usable_gold = gold
        """``gold``, until it turns out that it cannot be one."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the gold model before anything is computed."""
        self.exam = self.reference = None
        self.usable_gold = None if self.suite == "none" else self.gold
        if self.usable_gold is not None:
            check_model(self.usable_gold)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack the unedited model, after Lightning's sanity check has measured it."""
        if trainer.state.fn == "fit" and trainer.sanity_checking:
            self._attack(pl_module, "base")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack the edited model."""
        self._attack(pl_module, "edited")

    def _attack(self, module: LightningModule, name: str) -> None:
        if self.suite == "none" or not isinstance(module, UnlearnModule):
            return
        found = module.run.attacks
        with module.monitor.timed("attacks"):
            self.exam = self.exam or AttackContext.of(module.request, self.facts)
            if self.usable_gold is not None and self.reference is None:
                self._attack_gold(module, self.usable_gold, self.exam)
            if name not in found:
                found[name] = self._scores(module, module.lm, self.exam, MODELS[name])

    def _attack_gold(self, module: UnlearnModule, path: str, exam: AttackContext) -> None:
        """Attack gold, unless nothing can be compared with it."""
        gold = EditableLM.from_pretrained(path, dtype=module.dtype_name).to(module.lm.device)
        check_finite(gold, "gold")
        reason = unfit(gold, module.lm, exam)
        if reason:
            log.warning(
                "attacks.gold %s %s: it is left out, and there will be no verdict. docs/erase.md says how to train one "
                "for other facts.", path, reason,
            )  # fmt: skip
            self.usable_gold = None
            return
        self.reference = reference(gold, exam)
        if "gold" not in module.run.attacks:
            module.run.attacks["gold"] = self._scores(module, gold, exam, MODELS["gold"])

    def _scores(self, module: UnlearnModule, lm: EditableLM, exam: AttackContext, name: str) -> dict[str, Tensor]:
        # Nothing was added to gold and to the unedited model, but their scores have the same names.
        updates = {} if lm is not module.lm or not module.run.after else module.updates() or None
        attacks = attacks_of(self.suite, len(lm.layers), updates, self.reference)
        return run_attacks(lm, exam, attacks, open_cache(module.request.cache, lm, module.layers), module.monitor, name)


def unfit(gold: EditableLM, lm: EditableLM, exam: AttackContext) -> str:
    """Why a model cannot be gold for another one and these facts; empty if it can."""
    if gold.tokenizer.get_vocab() != lm.tokenizer.get_vocab():
        return "has another tokenizer than the model that forgets the facts"
    known = (Leak(samples=1)(gold, exam)["leak"] > KNOWN).double().mean().item()
    return f"knows {100 * known:.0f}% of the facts to forget" if known > ALLOWED else ""
