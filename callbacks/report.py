"""Report of a run: ``metrics.json``, ``report.html``, TensorBoard, and a table at the end."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from zu_lightning import LayerProblem, UnlearnModule
from zu_lightning.editing.closed_forms import NullSpaceMethod
from zu_lightning.modules.outputs import boards, run_folder, show_picture, show_results, unlearn_module
from zu_lightning.modules.results import results_of
from zu_lightning.report.page import write_page
from zu_lightning.report.plots import draw_attacks, draw_scores, draw_spectrum
from zu_lightning.report.results import FILE_NAME
from zu_lightning.report.terminal import results_table
from zu_lightning.runtime.files import out_of_room, writing

log = logging.getLogger(__name__)

SPECTRUM_POINTS = 200
"""Number of eigenvalues that TensorBoard's curve of a spectrum goes through; log10 of eigenvalue / mean."""


class Report(Callback):
    """Write the results of a fit when it ends.

    Args:
        texts: Whether the report may hold what was forgotten: prompts, answers, and completions. Without them facts go
            by their ids.
    """

    def __init__(self, *, texts: bool = True) -> None:
        self.texts = texts
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module."""
        unlearn_module(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on the folder, which takes all processes."""
        self.folder = run_folder(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the spectrum of the second moment of a layer's retain keys."""
        if batch_idx > 0 or not isinstance(batch, LayerProblem) or self.folder is None:
            return
        module = unlearn_module(pl_module)
        with module.monitor.timed("spectrum"):
            eigenvalues = torch.linalg.eigvalsh(batch.second_moment).flip(0)
            shares = (eigenvalues / eigenvalues.mean()).clamp(min=1e-12)
            method = module.method
            threshold = method.threshold_over_mean(eigenvalues) if isinstance(method, NullSpaceMethod) else None
            show_picture(trainer, self.folder, draw_spectrum(batch.layer, shares.tolist(), threshold))
        for i in range(0, len(shares), max(1, len(shares) // SPECTRUM_POINTS)):
            for board in boards(trainer):
                board.add_scalar(f"spectrum/layer_{batch.layer}", shares[i].log10(), i)

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
        """Write the results if the export fails, unless the disk is full.

        An interrupted run ends at once, and is reported when it is resumed.
        """
        can_write = isinstance(exception, Exception) and out_of_room(exception) is None
        if can_write and isinstance(pl_module, UnlearnModule) and pl_module.run.after and pl_module.is_done:
            self.on_fit_end(trainer, pl_module)
            self.teardown(trainer, pl_module, "fit")  # which Lightning does not call after an exception

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the page, after all other callbacks have drawn their pictures."""
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
        """Log where the completions are."""
        folder = run_folder(trainer)
        if folder is not None:
            log.info("completions in %s", folder / "predictions.jsonl")
