"""Causal tracing in a run, and the layers that it recommends."""

import logging
import random

from lightning import Callback, LightningModule, Trainer

from zu_lightning import Fact, InputError, Request, UnlearnModule
from zu_lightning.lm.work import Work
from zu_lightning.modules.outputs import run_folder, show_picture, unlearn_module
from zu_lightning.report.trace_plots import described, draw_effect_lines, draw_heat_maps, write_trace
from zu_lightning.runtime.distributed import process
from zu_lightning.tracing.indirect_effects import (
    IndirectEffects,
    TraceOptions,
    trace_effects,
    traceable,
    tracing_work,
)
from zu_lightning.tracing.recommendation import Recommendation, recommend
from zu_lightning.tracing.traced_prompts import ROLE_OF_LOOKUP, Corruption, traced_text

log = logging.getLogger(__name__)


class TraceLayers(Callback):
    """Trace facts of the data before they are edited, and recommend layers.

    It writes ``trace.json``, pictures, and ``layers.yaml``, a configuration with the recommended layers.

    Args:
        facts: Maximum number of facts to trace: those to forget, then others, drawn at random.
        corruption: ``noise`` on the subject's embeddings, or ``interchange`` with those of other subjects.
        samples: Corruptions of each fact.
        noise: Standard deviation of the noise, in units of that of the subjects' embeddings.
        window: Number of layers whose MLPs or attentions are restored together; a fifth of the model's by default.

    Raises:
        InputError: A number is not positive.
    """

    def __init__(
        self,
        facts: int = 100,
        corruption: Corruption = "noise",
        samples: int = 10,
        noise: float = 3.0,
        window: int | None = None,
    ) -> None:
        if facts < 1:
            raise InputError("facts", facts, "trace at least one fact.", "callbacks.TraceLayers")
        self.facts = facts
        self.options = TraceOptions(corruption, samples, noise, window)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module."""
        unlearn_module(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a window that is larger than the model before anything is measured."""
        self.options.window_for(len(unlearn_module(pl_module).lm.layers))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace the current model in a validation, or the unedited one before a fit."""
        module = unlearn_module(pl_module)
        is_dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if is_dry or not (trainer.state.fn == "validate" or module.moment == "before"):
            return
        facts = facts_to_trace(module.request, self.facts)
        if not facts:
            log.warning("No fact has a subject: there is nothing to trace.")
            return
        with module.monitor.timed("tracing"):
            effects = trace_effects(module.lm, facts, self.options, module.monitor)
            recommendation = recommend(effects, ROLE_OF_LOOKUP[facts[0].fact_token])
        level = logging.INFO if recommendation.is_sure else logging.WARNING
        log.log(level, "causal tracing of %d facts: %s", len(effects.facts), recommendation.sentence)
        self._write(trainer, effects, recommendation)

    def work(self, module: UnlearnModule) -> Work:
        """What this process will compute in a run."""
        facts, lm = facts_to_trace(module.request, self.facts), module.lm
        texts = [traced_text(lm.tokenizer, fact) for fact in facts]
        return tracing_work(len(lm.layers), texts, self.options) * (1 / process()[1])

    def _write(self, trainer: Trainer, effects: IndirectEffects, recommendation: Recommendation) -> None:
        folder = run_folder(trainer)
        if folder is None:
            return
        write_trace(folder / "trace.json", effects, recommendation)
        if not effects.facts:
            return
        if recommendation.layers:
            recommendation.write(folder / "layers.yaml")
        description = described(effects, recommendation)
        for draw in (draw_heat_maps, draw_effect_lines):
            show_picture(trainer, folder, draw(effects, description))
        log.info("Tracing results and pictures are in %s", folder)


def facts_to_trace(request: Request, count: int) -> list[Fact]:
    """Facts with a subject: those to forget, then others of the data, drawn by the request's seed."""
    forget = traceable(request.forget)
    ids = {fact.id for fact in forget}
    others = [fact for fact in traceable(request.all_facts) if fact.id not in ids]
    random.Random(request.seed).shuffle(others)
    return [*forget, *others][:count]
