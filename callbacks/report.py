"""What a run reports: ``metrics.json``, TensorBoard, and one table at the end."""

import json
import logging
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.run_folder import run_folder, unlearn_module
from zu_lightning import Fact, LayerProblem, NeutralTargets, Request, Results, TargetScores, UnlearnModule
from zu_lightning.attacks.verdict import verdict

log = logging.getLogger(__name__)

SAMPLES = 5
"""Number of forgotten prompts, and of kept ones, whose completions are shown."""

SPECTRUM_POINTS = 200
"""Number of eigenvalues that a spectrum's curve goes through; log10 of eigenvalue / mean, largest first."""


class Report(Callback):
    """Take sample completions before and after a fit, and write everything that was measured when it ends."""

    def __init__(self) -> None:
        self.folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that have nothing to report."""
        unlearn_module(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle the folder while all processes are there to agree on it."""
        self.folder = run_folder(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the spectrum of a layer's second moment: how much of the space retain keys leave free."""
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if batch_idx > 0 or not isinstance(batch, LayerProblem) or not trainer.is_global_zero or not boards:
            return
        with unlearn_module(pl_module).monitor.timed("spectrum"):
            eigenvalues = torch.linalg.eigvalsh(batch.second_moment).flip(0)
            shares = (eigenvalues / eigenvalues.mean()).clamp(min=1e-12).log10().tolist()
        for i in range(0, len(shares), max(1, len(shares) // SPECTRUM_POINTS)):
            for board in boards:
                board.add_scalar(f"spectrum/layer_{batch.layer}", shares[i], i)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take sample completions: before in Lightning's sanity check, after in the fit."""
        if trainer.state.fn != "fit":
            return
        module = unlearn_module(pl_module)
        if trainer.sanity_checking and module.run.before.get("efficacy") == 0:
            log.warning(
                "the model answers none of the facts to forget even before it is edited: efficacy will be meaningless."
            )
        when = "before" if trainer.sanity_checking else "after"
        if trainer.is_global_zero and not (when == "before" and when in module.run.completions):
            module.run.completions[when] = [module.complete(fact).strip() for fact in _samples(module.request)]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write scores and completions, and show the table."""
        if self.folder is None:
            return
        module = unlearn_module(pl_module)
        results = results_of(module)
        results.write(self.folder)
        _show_in_tensorboard(trainer, results, _completions_table(module))
        log.info("%s\nresults in %s", results.table(), self.folder)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What has been measured is kept when the export fails."""
        module = unlearn_module(pl_module)
        if module.run.after and module.is_done:
            self.on_fit_end(trainer, pl_module)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        """Append completions to ``predictions.jsonl``."""
        folder = run_folder(trainer)
        if folder is not None:
            with (folder / "predictions.jsonl").open("w" if batch_idx == 0 else "a") as file:
                file.writelines(json.dumps(output, ensure_ascii=False) + "\n" for output in outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the completions are."""
        folder = run_folder(trainer)
        if folder is not None:
            log.info("completions in %s", folder / "predictions.jsonl")


def results_of(module: UnlearnModule) -> Results:
    """Everything that a run has measured."""
    run, forget = module.run, module.request.forget
    attacks = run.attacks
    found = verdict(attacks["edited"], attacks["base"], attacks.get("gold")) if "edited" in attacks else None
    return Results(
        before=run.before,
        after=run.after,
        facts=len(forget),
        seconds=run.seconds,
        peak_memory_gib=_peak_memory_gib(module.lm.device),
        model=module.model_name_or_path + (" (a tiny random stand-in)" if module.tiny else ""),
        method=module.method,
        targets=None if run.targets is None else _target_scores(run.targets),
        layers={key.layer: edit.scores for key, edit in run.edits.items() if key.request == module.request.number},
        forgotten=[fact.id for fact in forget],
        attacks={} if found is None else found.scores_by_name(),
        comparisons={} if found is None else found.comparisons,
        verdict=None if found is None else found.sentence,
    )


def _target_scores(targets: NeutralTargets) -> TargetScores:
    reachable = 100 * targets.original_lost.double().mean().item()
    return TargetScores(reachable, targets.probability.mean().item())


def _show_in_tensorboard(trainer: Trainer, results: Results, completions: str) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({f"seconds/{phase}": seconds for phase, seconds in results.seconds.items()}, step=0)
        for step, scores in enumerate((results.before, results.after)):
            logger.log_metrics({f"before_after/{name}": value for name, value in scores.items()}, step=step)
        for step, model in enumerate(("base", "edited", "gold")):
            found = {f"attacks/{name}": scores[model] for name, scores in results.attacks.items() if model in scores}
            logger.log_metrics(found, step=step)
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text("completions", completions)
            logger.save()


def _completions_table(module: UnlearnModule) -> str:
    """Sample completions, before and after, in Markdown."""
    before, after = (module.run.completions.get(when, []) for when in ("before", "after"))
    rows = zip([fact.prompt for fact in _samples(module.request)], before, after, strict=False)
    lines = ["| prompt | before | after |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows])


def _samples(request: Request) -> list[Fact]:
    return [*request.forget[:SAMPLES], *request.retain[:SAMPLES]]


def _peak_memory_gib(device: torch.device) -> float:
    """Peak memory of the model's device, or of this process if that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
