"""What every method of unlearning shares: a language model is loaded, evaluated, and asked, and a run has a state."""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from typing import Any, cast

from lightning import LightningModule

from zu_lightning.errors import InputError
from zu_lightning.evaluation.evaluate import EvaluationBatch, compute_metrics, evaluation_metrics, update_metric
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.request import Request
from zu_lightning.lm.architecture import check_layers
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.loading import check_model
from zu_lightning.lm.tiny import write_tiny_model
from zu_lightning.lm.tokens import collate, tokenize_query
from zu_lightning.modules.state import RunState, as_text, check_settings, settings_of
from zu_lightning.solvers import LowRankUpdate
from zu_lightning.timing import Monitor

log = logging.getLogger(__name__)

COMPLETION_TOKENS = 12
"""Number of tokens in a sample completion."""


class UnlearnModule(LightningModule):
    """Base of all methods: loads a language model, evaluates it, and completes prompts.

    A gradient method overrides :meth:`configure_model` to register the weights that it trains as a submodule, and
    defines ``training_step`` and ``configure_optimizers``. The language model itself is not a submodule: neither
    checkpoints nor DDP need to know weights that stay as they are.

    Args:
        model_name_or_path: Hub id or directory of a causal language model.
        layers: Layers to edit, lowest first, from 0.
        dtype: How the weights are kept: ``auto``, ``float32``, ``bfloat16``, or ``float16``.
        tiny: Whether to use a tiny random model of the same architecture instead, which needs no download: to try
            the rest of a configuration.
        load_options: More arguments of ``from_pretrained``, such as ``{device_map: auto}`` for a model that is larger
            than one device (in one process), or ``{revision: ...}``.
        neutral_target: What the model should answer instead.
    """

    lm: EditableLM

    def __init__(
        self,
        model_name_or_path: str = "data/demo/model",
        layers: list[int] = [0],  # noqa: B006 (read only, and what --print_config should show)
        dtype: str = "auto",
        tiny: bool = False,
        load_options: dict[str, Any] | None = None,
        neutral_target: str = "unknown",
    ) -> None:
        super().__init__()
        self.model_name_or_path, self.layers, self.dtype_name = model_name_or_path, layers, dtype
        self.tiny, self.load_options, self.neutral_target = tiny, load_options or {}, neutral_target
        self.strict_loading = False  # checkpoints hold trained weights only
        self.metrics = evaluation_metrics()
        self.run = RunState()

    @property
    def request(self) -> Request:
        """What the data module asks to forget."""
        return cast("Request", self.trainer.datamodule.request)  # type: ignore[attr-defined]

    @property
    def monitor(self) -> Monitor:
        """Adds to the run's seconds; shows progress bars in the first process unless they are switched off."""
        return Monitor(self.run.seconds, self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None)

    @property
    def method(self) -> dict[str, object]:
        """Name and options of the method, for reports."""
        return {"name": type(self).__name__}

    def updates(self) -> dict[int, LowRankUpdate]:
        """For each edited layer, what was added to its weight; empty if the method's change is not known as factors."""
        return self.run.updates()

    def settings(self) -> dict[str, object]:
        """Everything in this module that decides which weights a run ends with, by option."""
        return {
            "model": type(self).__name__,
            "model.model_name_or_path": self.model_name_or_path,
            "model.layers": self.layers,
            "model.dtype": self.dtype_name,
            "model.tiny": self.tiny,
            "model.load_options": {name: self.load_options.get(name) for name in ("revision", "subfolder")},
        }

    def setup(self, stage: str) -> None:
        """Check what can be checked before weights are loaded."""
        if not self.tiny:
            check_layers(self.layers, check_model(self.model_name_or_path, **self.load_options))
        if "device_map" in self.load_options and self.trainer.world_size > 1:
            remedy = "its device_map spreads one model over all devices: run one process (--trainer.devices 1)."
            raise InputError("load_options", self.load_options, remedy)
        if stage == "fit":
            self.run = RunState(seconds=self.run.seconds)

    def configure_model(self) -> None:
        """Load the language model, once."""
        if hasattr(self, "lm"):
            return
        device = self.trainer.strategy.root_device
        with self.monitor.timed("load"):
            source = _written_tiny_model(self) if self.tiny else self.model_name_or_path
            self.lm = EditableLM.from_pretrained(source, dtype=self.dtype_name, **self.load_options).to(device)
        if self.lm.device != device:
            remedy = f"this puts the model on {self.lm.device}, but accelerator and devices choose {device}."
            raise InputError("load_options", self.load_options, remedy)

    def training_batches(self, request: Request) -> Iterable[Any]:
        """What the next epoch trains on; called before each epoch.

        By default the prompts to forget with their answers, as TokenBatches, the same ones in every process.
        """
        texts = [tokenize_query(self.lm.tokenizer, fact.query) for fact in request.forget]
        for indices in batches(texts, request.text.reading.batch_tokens):
            yield collate([texts[i] for i in indices], self.lm.tokenizer).to(self.lm.device)

    def validation_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """Add a batch of queries or text to its metric; ``None`` if a process has no share."""
        if batch is not None:
            with self.monitor.timed("evaluation"):
                update_metric(self.lm, self.metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores; those of Lightning's sanity check are the scores before."""
        scores = self._log_scores("val")
        if not self.trainer.sanity_checking:
            self.run.after = scores
        elif not self.run.before:  # a run that continues may have trained weights already
            self.run.before = scores

    def test_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """The same as validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole evaluation."""
        self._log_scores("test")

    def predict_step(self, batch: list[Fact], batch_idx: int) -> list[dict[str, str]]:
        """Greedy completions of the facts' prompts."""
        return [{"prompt": fact.prompt, "completion": self.complete(fact)} for fact in batch]

    def complete(self, fact: Fact) -> str:
        """Greedy completion of a fact's prompt."""
        return self.lm.generate(fact.prompt, COMPLETION_TOKENS, chat=fact.chat)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the state of the run, and the settings that it depends on."""
        checkpoint["run"], checkpoint["settings"] = self.run.state_dict(), settings_of(self.trainer)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the state of the run.

        Raises:
            InputError: The checkpoint was written by something else, or by a run with other settings.
        """
        path = self.trainer.ckpt_path
        if "run" not in checkpoint:
            raise InputError("ckpt_path", path, "this is not a checkpoint of an unlearning run: start without it.")
        here = settings_of(self.trainer) if self.trainer.state.fn == "fit" else as_text(self.settings())
        check_settings(checkpoint["settings"], here, path)
        self.run = RunState.from_state_dict(checkpoint["run"], self.lm.device)

    def _log_scores(self, prefix: str) -> dict[str, float]:
        scores = compute_metrics(self.metrics)
        self.log_dict({f"{prefix}/{name}": value for name, value in scores.items()})
        self.metrics.reset()
        return scores


def _written_tiny_model(module: UnlearnModule) -> str:
    """Write a tiny random model, from the first process, since transformers saves from that one only; its folder."""
    own = tempfile.mkdtemp()
    weakref.finalize(module, shutil.rmtree, own, ignore_errors=True)  # not before: the export compares with the base
    folder: str = module.trainer.strategy.broadcast(own)
    if module.trainer.is_global_zero:
        write_tiny_model(module.model_name_or_path, max(module.layers) + 2, folder)
    module.trainer.strategy.barrier("tiny model")
    return folder
