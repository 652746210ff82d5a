"""What every method of unlearning shares: batches to train on, a state of the run, checkpoints, and exports."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from zu_lightning.editing.method import Method
from zu_lightning.editing.request import Request, check_neutral_target
from zu_lightning.evaluation.scores import EvaluationBatch, batches_digest
from zu_lightning.lm.batching import batches
from zu_lightning.lm.export import export_adapter, export_model
from zu_lightning.lm.fingerprint import open_cache, weights_digest
from zu_lightning.lm.tokens import collate, tokenize_queries
from zu_lightning.lm.weights import check_projections
from zu_lightning.modules.evaluation import EvaluationModule
from zu_lightning.modules.previous import apply_previous, previous_edits
from zu_lightning.modules.state import RunState, as_text, check_settings
from zu_lightning.runtime.cache import Cache
from zu_lightning.runtime.distributed import all_gather_text
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest
from zu_lightning.solvers import LowRankUpdate

BY_FACT = "by fact, "
"""Begins the names of a metric's scores by fact in the cache."""


class Data(Protocol):
    """What a module needs from its data module."""

    request: Request
    continues_from: str | None

    def settings(self) -> dict[str, object]:
        """Everything in the data that decides which weights a run ends with, by option."""


class UnlearnModule(EvaluationModule):
    """Base of all methods.

    A gradient method overrides :meth:`configure_model` to register the weights that it trains as a submodule, and
    defines ``training_step`` and ``configure_optimizers``.

    Args:
        method: How the model is made to forget.
        kwargs: Arguments of :class:`EvaluationModule`.
    """

    data: Data
    """The data module, once :meth:`connect` is called."""

    def __init__(self, method: Method = Method(), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.method = method
        self.strict_loading = False  # checkpoints hold trained weights only
        self.run = RunState(seconds=self.seconds)
        self.cache: Cache | None = None
        """What runs share of the model as it was loaded."""
        self.digest_before = ""
        """By which the weights that were loaded are recognized."""
        self.file_before: Path | None = None
        """Where the cache has the scores of the evaluation that has begun, if those are scores before."""
        self.found_before: dict[str, Tensor] | None = None
        """These scores, if they were found there."""

    @property
    def request(self) -> Request:
        """What to forget and what to preserve, from the data module."""
        return self.data.request

    def connect(self, data: Data) -> None:
        """Take requests from a data module; the data module calls this."""
        self.data = data

    @property
    def is_done(self) -> bool:
        """Whether all epochs are done; unlike ``trainer.current_epoch``, this counts the last one of a killed run."""
        processed: int = self.trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
        return self.trainer.max_epochs is None or processed >= self.trainer.max_epochs

    def settings(self) -> dict[str, object]:
        """Everything in this module that decides which weights a run ends with, by parameter."""
        options = {f"method.{name}": value for name, value in vars(self.method).items()}
        method = {"module": type(self).__name__, "neutral_target": self.neutral_target, "method": self.method.name}
        return self.model_settings() | method | options

    def updates(self) -> dict[int, LowRankUpdate]:
        """For each edited layer, what was added to its weight; empty if the method's change is not known as factors."""
        return self.run.updates()

    def setup(self, stage: str) -> None:
        """Begin a fit with a fresh state."""
        super().setup(stage)
        if stage == "fit":
            self.run = RunState(seconds=self.seconds)

    def configure_model(self) -> None:
        """Load the language model with the updates of earlier requests; check and recognize it before more is added."""
        loads = not hasattr(self, "lm")
        super().configure_model()
        self.run.edits |= previous_edits(self.request)
        if loads:
            apply_previous(self.lm, self.request)
        if self.trainer.state.fn == "fit" or not self.digest_before:
            self.digest_before = self.weights_digest()
        if self.trainer.state.fn == "fit":
            _check_editable(self)
            self.cache = open_cache(self.request.cache, self.lm)

    def weights_digest(self) -> str:
        """A digest of the weights as they are: of all of those that are edited, and of a sample of the others."""
        if self.lm.is_dispatched:
            return "unknown: the model is spread over devices"
        return weights_digest(self.lm, self.layers)

    def training_batches(self) -> Iterable[Any]:
        """What the next epoch trains on; called before each epoch.

        By default the prompts to forget with their answers, as TokenBatches, the same ones in every process.
        """
        texts = tokenize_queries(self.lm.tokenizer, [fact.query for fact in self.request.forget])
        for indices in batches(texts, self.request.text.reading.batch_tokens):
            yield collate([texts[i] for i in indices], self.lm.tokenizer).to(self.lm.device)

    def on_validation_epoch_start(self) -> None:
        """Look for the scores before: what another run has measured is not measured again."""
        if not self.trainer.sanity_checking:
            # Should this evaluation fail, those of an earlier layer or epoch are not those of the run.
            self.run.after = {}
            self.run.by_fact.pop("after", None)
        # A run that continues may have trained weights already.
        if self.cache is None or not self.trainer.sanity_checking or self.run.before:
            return
        with self.monitor.timed("evaluation"):
            asked = batches_digest(cast("Iterable[EvaluationBatch | None]", self.trainer.val_dataloaders))
            own = digest(asked, self.trainer.num_sanity_val_batches, list(self.metrics), BY_FACT)
            # Processes have different shares, but one file.
            self.file_before = self.cache.file("before", all_gather_text(own, self.lm.device))
            (self.found_before,) = self.cache.find([self.file_before])

    def validation_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """Add a batch to its metric, unless the scores are known."""
        if self.found_before is None:
            super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the scores; those of Lightning's sanity check are the scores before."""
        if self.found_before is not None:
            self.run.before = {name: score.item() for name, score in self.found_before.items() if not score.dim()}
            self.run.by_fact["before"] = {
                name[len(BY_FACT) :]: sums.cpu() for name, sums in self.found_before.items() if sums.dim()
            }
            self.found_before = self.file_before = None
            self.metrics.reset()
            return
        by_fact = self.by_fact.over_all_processes(self.lm.device)
        scores = self.log_scores("val")
        if not self.trainer.sanity_checking:
            self.run.after, self.run.by_fact["after"] = scores, by_fact
        elif not self.run.before:
            self.run.before, self.run.by_fact["before"] = scores, by_fact
            if self.cache is not None:
                as_tensors = {name: torch.tensor(score, dtype=torch.float64) for name, score in scores.items()}
                self.cache.keep(self.file_before, as_tensors | {BY_FACT + name: sums for name, sums in by_fact.items()})

    def export(self, folder: Path, max_adapter_rank: int | None = None) -> tuple[Path, Path | None]:
        """Write ``model/`` and, if the change is known as low-rank factors, ``adapter/`` into a folder; their paths.

        Args:
            folder: Where to write.
            max_adapter_rank: See ``max_rank`` of :func:`zu_lightning.export_adapter`.
        """
        updates = self.updates()
        adapter = export_adapter(self.lm, updates, folder / "adapter", max_adapter_rank) if updates else None
        return export_model(self.lm, folder / "model"), adapter

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the run, and the settings that it depends on."""
        checkpoint["run"], checkpoint["settings"] = self.run.state_dict(), _settings_of(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the run, unless the checkpoint is that of something else."""
        path = self.trainer.ckpt_path
        if "run" not in checkpoint:
            raise InputError("ckpt_path", path, "this is not a checkpoint of an unlearning run: start without it.")
        check_settings(checkpoint["settings"], _settings_of(self), path)
        self.run = RunState.from_state_dict(checkpoint["run"], self.lm.device)
        self.seconds = self.run.seconds


def _check_editable(module: UnlearnModule) -> None:
    """Refuse what shows only once the model is loaded.

    Raises:
        InputError: A layer cannot be edited, or the neutral answer is a true one.
    """
    check_projections(module.lm, module.layers)
    if module.method.teaches_neutral_target:
        check_neutral_target(module.neutral_target, module.request.forget)


def _settings_of(module: UnlearnModule) -> dict[str, str]:
    """All that a fit depends on, the data and the weights that it begins with included; else what the model does."""
    weights = {"digest of the weights at model_name_or_path": module.digest_before}
    if module.trainer.state.fn != "fit":
        return as_text(module.model_settings() | weights)
    return as_text(module.settings() | module.data.settings() | weights)
