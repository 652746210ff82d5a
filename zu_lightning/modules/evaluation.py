"""A language model under Lightning: loading, evaluation, and completions."""

import shutil
import tempfile
import weakref
from typing import Any

from lightning import LightningModule

from zu_lightning.evaluation.queries import QueryTables
from zu_lightning.evaluation.scores import (
    Evaluation,
    EvaluationBatch,
    evaluation_metrics,
    query_scores,
    update_metric,
)
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.architecture import check_layers
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.loading import check_model
from zu_lightning.lm.random_tiny import write_random_tiny_model
from zu_lightning.lm.tokens import resolved_answer
from zu_lightning.lm.weights import check_finite
from zu_lightning.report.measurements import complete
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor


class EvaluationModule(LightningModule):
    """Loads a language model, evaluates it, and completes prompts.

    The language model is not a submodule: neither checkpoints nor DDP need to know weights that stay as they are.

    Args:
        model_name_or_path: Hub id or directory of a causal language model.
        layers: Layers to edit, lowest first, from 0.
        dtype: How the weights are kept: ``auto``, ``float32``, ``bfloat16``, or ``float16``.
        random_tiny_model: Whether to use a tiny random model of the same architecture instead, which needs no download:
            to try the rest of a configuration.
        load_options: More arguments of ``from_pretrained``, such as ``{device_map: auto}`` for a model that is larger
            than one device (in one process), or ``{revision: ...}``.
        neutral_target: Answer to give instead; ``<eos>`` is its tokenizer's end-of-text token.
    """

    lm: EditableLM
    chooses_layers = False
    """Whether the layers are decided once the model is loaded."""

    def __init__(
        self,
        model_name_or_path: str = "data/demo/model",
        layers: list[int] = [0],  # noqa: B006 (read only, and what --print_config should show)
        dtype: str = "auto",
        random_tiny_model: bool = False,
        load_options: dict[str, Any] | None = None,
        neutral_target: str = "unknown",
    ) -> None:
        super().__init__()
        if not neutral_target.strip():
            raise InputError("neutral_target", neutral_target, "say what the model should answer instead.")
        self.model_name_or_path, self.layers, self.dtype_name = model_name_or_path, layers, dtype
        self.random_tiny_model, self.load_options = random_tiny_model, load_options or {}
        self.neutral_target = neutral_target
        self.metrics = evaluation_metrics()
        self.queries = query_scores()
        self.seconds: dict[str, float] = {}
        """Seconds spent in each phase."""

    @property
    def monitor(self) -> Monitor:
        """Adds to ``seconds``; shows progress bars in the first process unless they are switched off."""
        return Monitor(self.seconds, self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None)

    def model_settings(self) -> dict[str, object]:
        """Everything that decides which model is evaluated, by parameter."""
        return {
            "model_name_or_path": self.model_name_or_path,
            "layers": self.layers,
            "dtype": self.dtype_name,
            "random_tiny_model": self.random_tiny_model,
            "load_options": {name: self.load_options.get(name) for name in ("revision", "subfolder")},
        }

    def setup(self, stage: str) -> None:
        """Check what can be checked before weights are loaded."""
        self.check_model_options()

    def check_model_options(self) -> None:
        """Refuse a model or layers that do not exist, and options that do not fit the trainer's."""
        depth = max(self.layers, default=0) + 1  # of a tiny model, which is made as deep as needed
        if not self.random_tiny_model:
            depth = check_model(self.model_name_or_path, **self.load_options)
        if self.layers or not self.chooses_layers:
            check_layers(self.layers, depth)
        if "device_map" in self.load_options and self.trainer.world_size > 1:
            remedy = "its device_map spreads one model over all devices: run one process."
            raise InputError("load_options", self.load_options, remedy)

    def configure_model(self) -> None:
        """Load the language model, unless the data has needed it before."""
        self.load_model()

    def load_model(self) -> EditableLM:
        """The language model; the first call loads it, as it is before any update of this run or of previous ones."""
        if hasattr(self, "lm"):
            return self.lm
        device = self.trainer.strategy.root_device
        with self.monitor.timed("load"):
            source = _written_tiny_model(self) if self.random_tiny_model else self.model_name_or_path
            self.lm = EditableLM.from_pretrained(source, dtype=self.dtype_name, **self.load_options).to(device)
        if self.lm.device != device:
            remedy = f"this puts the model on {self.lm.device}, but the trainer chooses {device}: make them agree."
            raise InputError("load_options", self.load_options, remedy)
        check_finite(self.lm)
        self.neutral_target = resolved_answer(self.lm.tokenizer, self.neutral_target)
        return self.lm

    def validation_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """Add a batch of queries or text to its metric; ``None`` if a process has no share."""
        if batch is not None:
            with self.monitor.timed("evaluation"):
                update_metric(self.lm, self.metrics, batch, self.queries)

    def on_validation_epoch_end(self) -> None:
        """Log the scores of the whole evaluation."""
        self.log_scores("val")

    def test_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """The same as validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the scores of the whole evaluation."""
        self.log_scores("test")

    def predict_step(self, batch: list[Fact], batch_idx: int) -> list[dict[str, str]]:
        """Greedy completions of the facts' prompts."""
        return [{"prompt": fact.prompt, "completion": self.complete(fact)} for fact in batch]

    def complete(self, fact: Fact) -> str:
        """Greedy completion of a fact's prompt."""
        return complete(self.lm, fact)

    def queries_before(self, now: QueryTables) -> QueryTables | None:
        """The queries of the model before, if they are known; ``now`` are those of the model that was evaluated."""
        return None

    def log_scores(self, prefix: str) -> Evaluation:
        """Log the scores of an evaluation that is complete; returns what it has found."""
        queries = self.queries.over_all_processes(self.lm.device)
        found = Evaluation.of(self.metrics, queries, self.queries_before(queries))
        self.log_dict({f"{prefix}/{name}": value for name, value in found.scores.items()})
        self.metrics.reset()
        self.queries = query_scores()
        return found


def _written_tiny_model(module: EvaluationModule) -> str:
    """Write a tiny random model, from the first process, since transformers saves from that one only; its folder."""
    own = tempfile.mkdtemp()
    weakref.finalize(module, shutil.rmtree, own, ignore_errors=True)  # not before: the export compares with the base
    folder: str = module.trainer.strategy.broadcast(own)
    if module.trainer.is_global_zero:
        write_random_tiny_model(module.model_name_or_path, max(module.layers) + 2, folder)
    module.trainer.strategy.barrier("tiny model")
    return folder
