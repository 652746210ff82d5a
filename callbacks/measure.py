"""Measurements of a run: before the edit, and after it."""

import logging
import warnings
from collections.abc import Sequence
from typing import Literal

from lightning import Callback, LightningModule, Trainer

from zu_lightning import UnlearnModule
from zu_lightning.attacks.measurement import Attacks as AttackMeasurement
from zu_lightning.attacks.presets import Preset
from zu_lightning.modules.outputs import run_folder, show_picture, unlearn_module
from zu_lightning.report.measurements import (
    Downstream as DownstreamMeasurement,
    Measurement,
    ReportedMeasurement,
    Representations as RepresentationMeasurement,
)

log = logging.getLogger(__name__)


class Measure(Callback):
    """Measure a model before it is edited, and again when training has ended.

    :attr:`zu_lightning.UnlearnModule.moment` says what *before* is. What a checkpoint holds is not measured again: a
    resumed run measures only what comes after, also if it was killed when only that was left. Name this callback before
    those that export and report.

    Args:
        measurements: What to measure, in this order.
    """

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.measurements = list(measurements)
        self.active: list[Measurement] = []
        """Measurements that apply to the request."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check options before anything is computed; a trial run measures nothing."""
        module = unlearn_module(pl_module)
        is_fit = stage == "fit" and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self.active = [one for one in self.measurements if is_fit and one.applies(module.request)]
        for measurement in self.active:
            measurement.check()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the unedited model, once Lightning's sanity check has evaluated it."""
        module = unlearn_module(pl_module)
        if module.moment == "before":
            self._measure(trainer, module, "before")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the edited model."""
        self._measure(trainer, unlearn_module(pl_module), "after")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the edited model if Lightning has skipped training, because a killed run had finished it."""
        module = unlearn_module(pl_module)
        if module.is_done:
            self._measure(trainer, module, "after")

    def _measure(self, trainer: Trainer, module: UnlearnModule, when: Literal["before", "after"]) -> None:
        """Measure what is not known yet."""
        folder = run_folder(trainer)
        updates = {} if when == "before" else module.updates() or None
        for measurement in self.active:
            results = module.run.measured.setdefault(measurement.name, {})
            if when in results:
                continue
            with module.monitor.timed(measurement.name):
                results[when] = measurement.measure(
                    module.lm, module.request, layers=module.layers, updates=updates, monitor=module.monitor
                )
            if when == "after" and folder is not None and isinstance(measurement, ReportedMeasurement):
                report = measurement.report(results.get("before"), results["after"], module.request, folder)
                if report is not None:
                    show_picture(trainer, folder, report.drawing)
                    for logger in trainer.loggers:
                        for step, metrics in enumerate(report.metrics):
                            logger.log_metrics(dict(metrics), step=step)
                    log.info("%s", report.line)


def _deprecated(name: str, section: str) -> None:
    message = f"callbacks.{name} is now the section `{section}`; the old name goes with the next release."
    warnings.warn(message, FutureWarning, 3)


class Attacks(Measure):
    """Deprecated: the section ``attacks``."""

    def __init__(self, suite: Preset = "quick", gold: str | None = None, facts: int = 100) -> None:
        _deprecated("Attacks", "attacks")
        super().__init__([AttackMeasurement(suite, gold, facts)])


class Downstream(Measure):
    """Deprecated: the section ``downstream``."""

    def __init__(
        self, folder: str, tasks: list[str] | None = None, limit: int = 200, wikitext: str | None = None,
        batch_size: int = 8,
    ) -> None:  # fmt: skip
        _deprecated("Downstream", "downstream")
        super().__init__([DownstreamMeasurement(folder, tasks, limit, wikitext, batch_size)])


class Representations(Measure):
    """Deprecated: the section ``representations``."""

    def __init__(self, facts: int = 100) -> None:
        _deprecated("Representations", "representations")
        super().__init__([RepresentationMeasurement(facts)])
