"""What a run reports: ``metrics.json``, ``report.html``, TensorBoard, and one table at the end."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.dashboard import boards, show_picture, show_results
from callbacks.results import identity_before, results_of, samples
from callbacks.run_folder import run_folder, unlearn_module
from zu_lightning import LayerProblem, UnlearnModule
from zu_lightning.report.page import write_page
from zu_lightning.report.plots import draw_attacks, draw_scores, draw_spectrum
from zu_lightning.report.results import FILE_NAME
from zu_lightning.report.terminal import results_table
from zu_lightning.runtime.files import out_of_room, writing
from zu_lightning.runtime.timing import now

log = logging.getLogger(__name__)

SPECTRUM_POINTS = 200
"""Number of eigenvalues that TensorBoard's curve of a spectrum goes through; log10 of eigenvalue / mean."""


class Report(Callback):
    """Take sample completions before and after a fit, and write everything that was measured when it ends.

    Args:
        texts: Whether the report may hold what was forgotten: prompts, answers, and completions. Without them facts go
            by their ids.
    """

    def __init__(self, *, texts: bool = True) -> None:
        self.texts = texts
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that have nothing to report."""
        unlearn_module(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle the folder while all processes are there to agree on it."""
        self.folder = run_folder(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the spectrum of a layer's second moment: how much of the space retain keys leave free."""
        if batch_idx > 0 or not isinstance(batch, LayerProblem) or self.folder is None:
            return
        module = unlearn_module(pl_module)
        with module.monitor.timed("spectrum"):
            eigenvalues = torch.linalg.eigvalsh(batch.second_moment).flip(0)
            shares = (eigenvalues / eigenvalues.mean()).clamp(min=1e-12)
            threshold = _threshold(module, eigenvalues)
            show_picture(trainer, self.folder, draw_spectrum(batch.layer, shares.tolist(), threshold))
        for i in range(0, len(shares), max(1, len(shares) // SPECTRUM_POINTS)):
            for board in boards(trainer):
                board.add_scalar(f"spectrum/layer_{batch.layer}", shares[i].log10(), i)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take sample completions: before in Lightning's sanity check, after in the fit."""
        if trainer.state.fn != "fit":
            return
        module = unlearn_module(pl_module)
        if trainer.sanity_checking:
            _begin(module)
        when = "before" if trainer.sanity_checking else "after"
        if trainer.is_global_zero and not (when == "before" and when in module.run.completions):
            module.run.completions[when] = [module.complete(fact).strip() for fact in samples(module.request)]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results, and show the table."""
        if self.folder is None:
            return
        results = results_of(unlearn_module(pl_module), texts=self.texts)
        results.write(self.folder)
        if results.after:
            show_picture(trainer, self.folder, draw_scores(results))
        if results.attacks:
            show_picture(trainer, self.folder, draw_attacks(results))
        show_results(trainer, results)
        log.info("%s", results_table(results, color=sys.stderr.isatty()))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What has been measured is kept when the export fails, unless that is for lack of room.

        A run that is interrupted is in a hurry, and is reported when it is continued.
        """
        can_write = isinstance(exception, Exception) and out_of_room(exception) is None
        if can_write and isinstance(pl_module, UnlearnModule) and pl_module.run.after and pl_module.is_done:
            self.on_fit_end(trainer, pl_module)
            self.teardown(trainer, pl_module, "fit")  # which Lightning does not call after an exception

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the page, when all other callbacks have left what it shows."""
        if self.folder is not None and stage == "fit" and (self.folder / FILE_NAME).exists():
            page = write_page(self.folder)
            log.info("\nthe report: %s\nthe dashboard: tensorboard --logdir %s", page, trainer.default_root_dir)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Append completions to ``predictions.jsonl``."""
        folder = run_folder(trainer)
        if folder is not None:
            path = folder / "predictions.jsonl"
            with writing(path), path.open("w" if batch_idx == 0 else "a") as file:
                file.writelines(json.dumps(output, ensure_ascii=False) + "\n" for output in outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the completions are."""
        folder = run_folder(trainer)
        if folder is not None:
            log.info("completions in %s", folder / "predictions.jsonl")


def _begin(module: UnlearnModule) -> None:
    """Note when a run began and with what, unless a run that is continued has done so."""
    if module.run.before.get("efficacy") == 0:
        log.warning(
            "the model answers none of the facts to forget even before it is edited: efficacy will say nothing."
        )
    if not module.run.started:
        module.run.started, module.run.identity = now(), identity_before(module)


def _threshold(module: UnlearnModule, eigenvalues: torch.Tensor) -> float | None:
    """Below which share of the mean eigenvalue directions are free, if the method has such a threshold."""
    rule: Any = getattr(module, "rule", None) or getattr(module, "objective", None)
    if not hasattr(rule, "threshold"):
        return None
    mean = eigenvalues.mean().item()
    units = {"absolute": 1.0 if rule.scale_free else 1 / mean, "relative": eigenvalues[0].item() / mean}
    return float(rule.threshold) * units[rule.criterion] if rule.criterion in units else None
