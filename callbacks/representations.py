"""What representations of facts look like before and after a fit."""

import logging

from lightning import LightningModule, Trainer

from callbacks.afterwards import Afterwards
from callbacks.dashboard import show_picture
from callbacks.run_folder import run_folder, sees_unedited_model, unlearn_module
from zu_lightning import Fact, InputError, UnlearnModule
from zu_lightning.report.representation_plots import draw_run
from zu_lightning.tracing.representations import groups_of, projection_outputs, representation_map

log = logging.getLogger(__name__)


class Representations(Afterwards):
    """Write ``representations.json`` and a picture of what edited layers return for facts, before and after.

    Args:
        facts: Maximum number of facts per group: forgotten, kept, and unseen ones.
    """

    def __init__(self, facts: int = 100) -> None:
        if facts < 1:
            raise InputError("facts", facts, "give a positive number.", "callbacks.Representations")
        self.facts = facts

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that forget nothing."""
        unlearn_module(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the unedited model, after Lightning's sanity check has measured it; a checkpoint keeps what is found."""
        module = unlearn_module(pl_module)
        if sees_unedited_model(trainer):
            with module.monitor.timed("representations"):
                found = projection_outputs(module.lm, self._facts(module), module.layers)
                module.run.representations = {layer: states.float().cpu() for layer, states in found.items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the edited model, and write both."""
        module, folder = unlearn_module(pl_module), run_folder(trainer)
        before, facts = module.run.representations, self._facts(module)
        if {len(states) for states in before.values()} != {len(facts)}:
            log.warning(
                "the unedited model was not read for these facts (at most %d a group), so that there is no picture: "
                "keep Lightning's sanity check, and continue a run with the options that it was started with.",
                self.facts,
            )
            return
        with module.monitor.timed("representations"):
            after = projection_outputs(module.lm, facts, module.layers)
            if folder is None:
                return
            # Weights are kept in 32 bits at most, and so is what was read before.
            after = {layer: states.float() for layer, states in after.items()}
            found = representation_map(groups_of(module.request, self.facts), before, after)
            found.write(folder)
            picture = show_picture(trainer, folder, draw_run(found))
        for logger in trainer.loggers:
            logger.log_metrics({f"representations/{name}": value for name, value in found.numbers.items()}, step=0)
        moved = {name: value for name, value in found.numbers.items() if name.endswith("_moved")}
        told = ", ".join(f"{name.removesuffix('_moved')} {value:.2f}" for name, value in moved.items())
        log.info("representations: how far facts moved, as a share of how far they differ: %s; %s", told, picture)

    def _facts(self, module: UnlearnModule) -> list[Fact]:
        return [fact for facts in groups_of(module.request, self.facts).values() for fact in facts]
