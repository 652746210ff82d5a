"""Base of all methods in Lightning: training batches, scores before and after, checkpoints, and exports."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from zu_lightning.editing.method import Method
from zu_lightning.editing.request import Request, check_neutral_target
from zu_lightning.evaluation.queries import QueryTables
from zu_lightning.evaluation.scores import Evaluation, EvaluationBatch, batches_digest
from zu_lightning.lm.export import export_adapter, export_model
from zu_lightning.lm.fingerprint import open_cache, weights_digest
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import tokenize_all
from zu_lightning.lm.weights import check_projections
from zu_lightning.modules.evaluation import EvaluationModule
from zu_lightning.modules.previous import apply_previous, previous_edits
from zu_lightning.modules.results import identity_of
from zu_lightning.modules.state import RunState, as_text, check_settings
from zu_lightning.runtime.cache import Cache
from zu_lightning.runtime.distributed import all_gather_text
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest
from zu_lightning.runtime.timing import now
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

QUERIES = "queries, "
"""Begins the names of the tables of a metric's queries in the cache."""


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
        """Results that runs share for the model as it was loaded."""
        self.has_previous = False
        """Whether the updates of previous requests are in the model."""
        self.estimated_seconds: dict[str, float] = {}
        """Seconds that each phase of a run is expected to take, before it begins; empty if nobody has asked."""
        self.digest_before = ""
        """Fingerprint of the loaded weights."""
        self.scores_file: Path | None = None
        """File of the cache for the scores before, while they are measured."""
        self.cached_scores: dict[str, Tensor] | None = None
        """These scores, if another run has measured them."""

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

    @property
    def moment(self) -> Literal["before", "after"] | None:
        """Which model a fit evaluates now: the one ``before`` the edit, or the one ``after`` (a part of) it.

        Before is Lightning's sanity check of a fit that begins. A fit that continues from a checkpoint may start with
        edited weights; the results before are in the checkpoint. ``None`` outside of a fit.
        """
        if self.trainer.state.fn != "fit":
            return None
        if not self.trainer.sanity_checking:
            return "after"
        return "before" if self.trainer.ckpt_path is None else None

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
            self.run, self.estimated_seconds = RunState(seconds=self.seconds), {}

    def configure_model(self) -> None:
        """Load the language model with the updates of previous requests; check and fingerprint it."""
        super().configure_model()
        self.run.edits |= previous_edits(self.request)
        if not self.has_previous:
            apply_previous(self.lm, self.request)
            self.has_previous = True
        self.choose_layers()
        if self.trainer.state.fn == "fit" or not self.digest_before:
            self.digest_before = self.weights_digest()
        if self.trainer.state.fn == "fit":
            _check_editable(self)
            self.cache = open_cache(self.request.cache, self.lm)

    def choose_layers(self) -> None:
        """Decide which layers are edited, if that is left to the module; the model is loaded, and unedited."""

    def weights_digest(self) -> str:
        """Digest of the current weights: of every entry of the edited layers, and of a sample of the others."""
        if self.lm.is_dispatched:
            return "unknown: the model is spread over devices"
        return weights_digest(self.lm, self.layers)

    def training_batches(self) -> Iterable[Any]:
        """What the next epoch trains on; called before each epoch.

        By default the prompts to forget with their answers, as TokenBatches, the same ones in every process.
        """
        texts = tokenize_all(self.lm.tokenizer, [fact.query for fact in self.request.forget])
        for _, batch in batched(self.lm, texts, self.request.text.reading.batch_tokens):
            yield batch

    def on_fit_start(self) -> None:
        """Note when a run began and with what; a run that continues has done so."""
        if not self.run.started:
            self.run.started, self.run.identity = now(), identity_of(self)

    def on_validation_epoch_start(self) -> None:
        """Look in the cache for the scores before; forget those of an earlier layer or epoch, should this one fail."""
        if self.moment == "after":
            self.run.after = {}
            self.run.queries.pop("after", None)
        if self.moment == "before" and self.cache is not None:
            with self.monitor.timed("evaluation"):
                queries = batches_digest(cast("Iterable[EvaluationBatch | None]", self.trainer.val_dataloaders))
                own = digest(queries, self.trainer.num_sanity_val_batches, list(self.metrics))
                # Processes have different shares, but one file.
                self.scores_file = self.cache.file("before", all_gather_text(own, self.lm.device))
                (self.cached_scores,) = self.cache.find([self.scores_file])

    def validation_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """Add a batch to its metric, unless the scores are known."""
        if self.cached_scores is None:
            super().validation_step(batch, batch_idx)

    def queries_before(self, now: QueryTables) -> QueryTables | None:
        """The queries of the model before the edit, unless it was not evaluated."""
        return now if self.moment == "before" else self.run.queries.get("before")

    def on_validation_epoch_end(self) -> None:
        """Log the scores, and keep those before and after."""
        if self.cached_scores is None:
            scores, queries = found = self.log_scores("val")
            if self.moment == "before" and self.cache is not None:
                self.cache.keep(self.scores_file, _as_tensors(found))
        else:
            scores, queries = _from_tensors(self.cached_scores)
            self.metrics.reset()
        if self.moment == "after":
            self.run.after, self.run.queries["after"] = scores, queries
        if self.moment == "before":
            self.run.before, self.run.queries["before"] = scores, queries
            if scores.get("efficacy") == 0:
                log.warning("The model answers none of the facts to forget before the edit: efficacy is uninformative.")
        self.scores_file = self.cached_scores = None

    def export(self, folder: Path, max_adapter_rank: int | None = None) -> tuple[Path, Path | None]:
        """Write ``model/`` and, if the change is known as low-rank factors, ``adapter/`` into a folder; their paths.

        Args:
            folder: Where to write.
            max_adapter_rank: Rank to which the adapter is cut; by default it is exact.
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
    """Check what depends on the loaded model.

    Raises:
        InputError: A layer cannot be edited, or the neutral answer is a true one.
    """
    check_projections(module.lm, module.layers)
    if module.method.teaches_neutral_target:
        check_neutral_target(module.neutral_target, module.request.forget)


def _as_tensors(found: Evaluation) -> dict[str, Tensor]:
    """What an evaluation has found, as the cache keeps it."""
    scores = {name: torch.tensor(score, dtype=torch.float64) for name, score in found.scores.items()}
    return scores | {QUERIES + name: table for name, table in found.queries.items()}


def _from_tensors(tensors: dict[str, Tensor]) -> Evaluation:
    """What :func:`_as_tensors` was given."""
    scores = {name: score.item() for name, score in tensors.items() if not score.dim()}
    return Evaluation(scores, {name[len(QUERIES) :]: table.cpu() for name, table in tensors.items() if table.dim()})


def _settings_of(module: UnlearnModule) -> dict[str, str]:
    """Settings of a fit, its data and loaded weights included; otherwise those of the model alone."""
    weights = {"digest of the weights at model_name_or_path": module.digest_before}
    if module.trainer.state.fn != "fit":
        return as_text(module.model_settings() | weights)
    return as_text(module.settings() | module.data.settings() | weights)
