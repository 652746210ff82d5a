"""How long a run will take, said before it begins."""

import logging
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer

from callbacks.export import ExportEditedModel
from callbacks.measure import Measure
from callbacks.report import Report
from callbacks.trace import TraceLayers
from zu_lightning import EditingModule, EvaluationBatch, GradientModule, UnlearnModule
from zu_lightning.attacks.measurement import Attacks
from zu_lightning.lm.work import measure_speed
from zu_lightning.report.estimate import (
    Phase,
    attacks_phase,
    completions_work,
    editing_works,
    evaluation_work,
    export_phase,
    spectrum_work,
    told,
    training_work,
)

log = logging.getLogger(__name__)


class Estimate(Callback):
    """Log how long a fit will take, before its evaluation before; not of a trial run, nor of one that is resumed."""

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """With the first batch it is known what will be evaluated, and whether the scores are cached."""
        is_dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if batch_idx > 0 or is_dry or not isinstance(pl_module, UnlearnModule) or pl_module.moment != "before":
            return
        evaluation = [one for one in cast("list[EvaluationBatch | None]", trainer.val_dataloaders) if one is not None]
        queries = [one for one in evaluation if one.metric != "perplexity"] or evaluation
        if not queries:
            return
        speed = measure_speed(pl_module.lm, max(queries, key=lambda one: len(one.texts.lengths)).texts)
        phases = phases_of(trainer, pl_module, evaluation)
        seconds = {
            name: phase.times * speed.seconds(phase.work) + (phase.times > 0) * phase.seconds
            for name, phase in phases.items()
        }
        pl_module.estimated_seconds = seconds
        if trainer.is_global_zero:
            log.info("%s", told(seconds, {name: phase.times for name, phase in phases.items()}))


def phases_of(trainer: Trainer, module: UnlearnModule, evaluation: list[EvaluationBatch]) -> dict[str, Phase]:
    """What a fit will do, by the phases of ``seconds``, in order."""
    lm, request, layers = module.lm, module.request, module.layers
    load = module.seconds.get("load", 0.0)
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]

    def has(kind: type[Callback]) -> bool:
        return any(isinstance(callback, kind) for callback in callbacks)

    measured = [one for callback in callbacks if isinstance(callback, Measure) for one in callback.active]
    after = len(layers) if isinstance(module, EditingModule) and module.evaluate_layers else 1
    phases = {"evaluation": Phase(evaluation_work(evaluation), after + (module.cached_scores is None))}
    for measurement in measured:
        if isinstance(measurement, Attacks):
            phases["attacks"] = attacks_phase(lm, request, measurement, layers, load)
        elif measurement.name == "completions":
            phases["completions"] = Phase(completions_work(lm, request))
    for callback in callbacks:
        if isinstance(callback, TraceLayers):
            phases["tracing"] = Phase(callback.work(module))
    if isinstance(module, EditingModule):
        assert module.cache is not None
        works = editing_works(lm, request, module.method, layers, module.cache, module.neutral_target)
        if has(Report):
            works["spectrum"] = spectrum_work(lm, layers)
        phases |= {name: Phase(work) for name, work in works.items()}
    elif isinstance(module, GradientModule):
        phases["training"] = Phase(training_work(lm, request, module.method, layers, module.neutral_target))
    if has(ExportEditedModel):
        phases["export"] = export_phase(lm, request, load)
    return phases
