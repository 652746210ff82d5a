"""Attacks before and after a fit, and on a model that never knew."""

from lightning import Callback, LightningModule, Trainer

from zu_lightning import EditableLM, UnlearnModule
from zu_lightning.attacks.exam import Exam
from zu_lightning.attacks.suite import Suite, attacks_of, run_attacks
from zu_lightning.errors import require_positive
from zu_lightning.lm.loading import check_model
from zu_lightning.problem.cache import Cache


class Attacks(Callback):
    """Find out what is left of the forgotten facts, beside the unedited model and one that never knew them.

    Args:
        suite: Which attacks: ``quick`` (forward passes only), ``full`` (samples, quantization, and relearning, too), or
            ``none``.
        facts: Maximum number of facts to attack: the first of those to forget.
        gold: Hub id or directory of a model that was trained in the same way but never knew the facts. Without one
            there is no verdict.
    """

    def __init__(self, suite: Suite = "quick", gold: str | None = None, facts: int = 100) -> None:
        require_positive("facts", facts)
        self.suite, self.gold, self.facts = suite, gold, facts
        self.exam: Exam | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the gold model before anything is computed."""
        self.exam = None
        if self.suite != "none" and self.gold is not None:
            check_model(self.gold)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack the unedited model, after Lightning's sanity check has measured it."""
        if trainer.state.fn == "fit" and trainer.sanity_checking and isinstance(pl_module, UnlearnModule):
            self._attack(pl_module, pl_module.lm, "base")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack the edited model and gold."""
        if not isinstance(pl_module, UnlearnModule) or self.suite == "none" or not pl_module.run.after:
            return
        self._attack(pl_module, pl_module.lm, "edited")
        if self.gold is not None:
            gold = EditableLM.from_pretrained(self.gold, dtype=pl_module.dtype_name).to(pl_module.lm.device)
            self._attack(pl_module, gold, "gold")

    def _attack(self, module: UnlearnModule, lm: EditableLM, name: str) -> None:
        if self.suite == "none" or name in module.run.attacks:
            return
        with module.monitor.timed("attacks"):
            self.exam = self.exam or Exam.of(module.request, self.facts)
            edited = name == "edited"
            # Nothing was added to the others, but their scores have the same names.
            attacks = attacks_of(self.suite, len(lm.layers), (module.updates() or None) if edited else {})
            cache = Cache(module.request.cache, lm, module.layers if edited else ())
            module.run.attacks[name] = run_attacks(lm, self.exam, attacks, cache, module.monitor)
