"""What a run tells: ``metrics.json``, TensorBoard, and one table at the end."""

import json
import logging
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.closed_form import chosen_rule
from callbacks.run_folder import run_folder, write_whole
from zu_lightning import Fact, UnlearnModule, timed
from zu_lightning.modules.base import COMPLETION_TOKENS

log = logging.getLogger(__name__)

SAMPLES = 5
"""Forgotten and kept prompts, so many of each, whose completions are shown."""

SPECTRUM_POINTS = 200
"""Eigenvalues that a spectrum's curve goes through; log10 of an eigenvalue over the mean one, the largest first."""

COLUMNS = ("efficacy", "generalization", "specificity", "multi_hop", "retain", "efficacy_probability", "perplexity")


class Report(Callback):
    """Keep the evaluation before and after a fit, with sample completions, and write them when it ends."""

    def __init__(self) -> None:
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self.completions: dict[str, list[str]] = {}
        self.folder: Path | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle the folder while all processes are there to agree on it."""
        self.folder = run_folder(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Draw the spectrum of a layer's second moment: how much of the space retain keys leave free."""
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if batch_idx > 0 or not isinstance(pl_module, UnlearnModule) or not trainer.is_global_zero or not boards:
            return
        with timed(pl_module.seconds, "spectrum"):
            eigenvalues = torch.linalg.eigvalsh(batch.second_moment).flip(0)
            shares = (eigenvalues / eigenvalues.mean()).clamp(min=1e-12).log10().tolist()
        for i in range(0, len(shares), max(1, len(shares) // SPECTRUM_POINTS)):
            for board in boards:
                board.add_scalar(f"spectrum/layer_{batch.layer}", shares[i], i)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was measured after the layer before is not what this run ends with."""
        if not trainer.sanity_checking:
            self.after = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The evaluation in Lightning's sanity check is the one before; the latest one in the fit is the one after."""
        if not isinstance(pl_module, UnlearnModule) or trainer.state.fn != "fit":
            return
        when = "before" if trainer.sanity_checking else "after"
        setattr(self, when, dict(pl_module.figures))
        if trainer.sanity_checking and pl_module.figures.get("efficacy") == 0:
            log.warning(
                "the model answers none of the facts to forget even before it is edited: efficacy will tell nothing."
            )
        if trainer.is_global_zero:
            self.completions[when] = [
                pl_module.lm.generate(fact.prompt, COMPLETION_TOKENS, chat=fact.chat).strip()
                for fact in _sample_facts(trainer)
            ]

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write figures and completions, and show the table."""
        if self.folder is None or not isinstance(pl_module, UnlearnModule):
            return
        self._write(self.folder, trainer, pl_module)
        self._show_in_tensorboard(trainer, pl_module)
        log.info("%s\nresults in %s", self._table(), self.folder)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What has been measured is kept when the export fails."""
        if isinstance(pl_module, UnlearnModule) and self.after and not pl_module.layers_left:
            self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """For a run that is killed and goes on."""
        return {"before": self.before, "after": self.after, "completions": self.completions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the run that was killed."""
        self.before, self.after = state_dict["before"], state_dict["after"]
        self.completions = state_dict["completions"]

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

    def _write(self, folder: Path, trainer: Trainer, module: UnlearnModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        rule = chosen_rule(trainer)
        metrics = {
            "before": self.before,
            "after": self.after,
            "facts": len(data.forget),
            "seconds": module.seconds,
            "peak_memory_gib": _peak_memory_gib(module.lm.device),
            "model": module.model_name_or_path + (" (a tiny random stand-in)" if module.tiny else ""),
            "rule": {"name": type(rule).__name__, **asdict(rule)} if rule else {"name": "gradient descent"},
            "targets": {
                "reachable": 100 * data.known.targets.original_lost.double().mean().item(),
                "probability": data.known.targets.probability.mean().item(),
            },
            "layers": module.layer_figures,
            "forgotten": [fact.id for fact in data.forget],
        }
        write_whole(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")

    def _show_in_tensorboard(self, trainer: Trainer, module: UnlearnModule) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({f"seconds/{phase}": seconds for phase, seconds in module.seconds.items()}, step=0)
            for step, figures in enumerate((self.before, self.after)):
                logger.log_metrics({f"before_after/{name}": value for name, value in figures.items()}, step=step)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("completions", self._completions_table(trainer))
                logger.save()

    def _completions_table(self, trainer: Trainer) -> str:
        rows = zip(
            [fact.prompt for fact in _sample_facts(trainer)],
            self.completions.get("before", []),
            self.completions.get("after", []),
            strict=False,
        )
        lines = ["| prompt | before | after |", "|---|---|---|"]
        return "\n".join(
            lines + [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
        )

    def _table(self) -> str:
        names = [name for name in COLUMNS if name in self.after]
        head = f"{'':8}" + "".join(f"{name:>{len(name) + 2}}" for name in names)
        rows = [
            f"{when:8}" + "".join(f"{figures.get(name, float('nan')):>{len(name) + 2}.3f}" for name in names)
            for when, figures in (("before", self.before), ("after", self.after))
        ]
        return "\n".join(["", head, *rows])


def _sample_facts(trainer: Trainer) -> list[Fact]:
    data = trainer.datamodule  # type: ignore[attr-defined]
    return [*data.forget[:SAMPLES], *data.retain[:SAMPLES]]


def _peak_memory_gib(device: torch.device) -> float:
    """Of the model's device, or of this process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
