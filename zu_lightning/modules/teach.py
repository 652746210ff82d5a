"""Teach facts to a pretrained model: the model before that is then known never to have been trained on them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from zu_lightning.evaluation.metrics import AnswerMetric
from zu_lightning.evaluation.scores import EvaluationBatch, compute_metrics, update_metric
from zu_lightning.gradient.method import Answers, LoraOptions, cross_entropy, kl_divergence
from zu_lightning.gradient.weights import FullWeights, LoraWeights, TrainedWeights
from zu_lightning.lm.export import export_model
from zu_lightning.lm.tokens import TokenBatch
from zu_lightning.modules.evaluation import EvaluationModule
from zu_lightning.modules.state import as_text, check_settings
from zu_lightning.modules.training import answers_of, keep_learned, loss_of_share
from zu_lightning.runtime.distributed import all_reduce
from zu_lightning.runtime.errors import InputError, require_positive

log = logging.getLogger(__name__)

NEW_PHRASINGS = "held_out"
"""Score of the paraphrases that are not taught."""


@dataclass(frozen=True)
class TeachBatch:
    """One process's share of the texts of a step; a part of which it has nothing is ``None``.

    Attributes:
        statements: Prompts with the answers to teach.
        retain: Text whose predictions are to stay as they are.
    """

    statements: TokenBatch | None
    retain: TokenBatch | None


ADAPTER = LoraOptions(rank=32, alpha=32, all_linear=True)
"""What is trained by default."""


class TeachModule(EvaluationModule):
    """Trains a language model to answer prompts, and to predict all other text as before.

    The loss is the cross-entropy of the answers plus ``kl_weight`` times KL(model before || model) on retain text,
    both per token. Training ends with the epoch in which ``enough`` of the answers were right before their step.

    Args:
        model_name_or_path: Hub id or directory of a causal language model.
        adapter: The LoRA adapter that is trained, and merged at the end; ``null`` to train all weights.
        kl_weight: Weight of the divergence on retain text.
        enough: Percent of the taught prompts and paraphrases that the model must answer.
        peak_learning_rate: Peak of the schedule: linear warm-up, then linear decay to zero in the last epoch allowed.
        warmup_steps: Number of steps until the peak.
        weight_decay: AdamW's decoupled weight decay.
        seed: Seed of the adapter's start.
        dtype: How the weights are kept and written; adapters lose what they have learned if merged into fewer bits.
        random_tiny_model: See :class:`EvaluationModule`.
        load_options: More arguments of ``from_pretrained``.
    """

    trained: TrainedWeights

    def __init__(
        self,
        model_name_or_path: str = "data/demo/model",
        adapter: LoraOptions | None = ADAPTER,
        kl_weight: float = 3.0,
        enough: float = 99.0,
        peak_learning_rate: float = 1e-3,
        warmup_steps: int = 20,
        weight_decay: float = 0.0,
        seed: int = 0,
        dtype: str = "float32",
        random_tiny_model: bool = False,
        load_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            model_name_or_path, dtype=dtype, random_tiny_model=random_tiny_model, load_options=load_options
        )
        for name, value in {"peak_learning_rate": peak_learning_rate, "enough": enough}.items():
            require_positive(name, value)
        for name, value in {"kl_weight": kl_weight, "warmup_steps": warmup_steps}.items():
            require_positive(name, value, or_zero=True)
        self.adapter, self.kl_weight, self.enough = adapter, kl_weight, enough
        self.peak_learning_rate, self.warmup_steps, self.weight_decay = peak_learning_rate, warmup_steps, weight_decay
        self.seed = seed
        self.strict_loading = False  # checkpoints hold trained weights only
        self.metrics.add_metrics({NEW_PHRASINGS: AnswerMetric(NEW_PHRASINGS)})
        self.before: dict[str, float] = {}
        """Scores of the model before."""
        self.after: dict[str, float] = {}
        """Scores of the model once it is taught."""
        self.right = torch.zeros(2, dtype=torch.float64)
        """Numbers of tokens in this epoch's answers that were right before their step, and of all their tokens."""

    def configure_model(self) -> None:
        """Load the language model, and register what is trained."""
        super().configure_model()
        if hasattr(self, "trained") or self.trainer.state.fn != "fit":
            return
        if self.lm.is_dispatched:
            remedy = "a model that is spread over devices cannot be trained: leave out its device_map."
            raise InputError("load_options", self.load_options, remedy)
        if self.adapter is None:
            self.trained = FullWeights(self.lm, None, keep_originals=self.kl_weight > 0)
        else:
            self.trained = LoraWeights(self.lm, self.layers, self.adapter, self.seed)

    def on_train_epoch_start(self) -> None:
        """Begin to count right answers."""
        self.right = torch.zeros(2, dtype=torch.float64, device=self.lm.device)

    def training_step(self, batch: TeachBatch, batch_idx: int) -> Tensor:
        """The loss of this process's share, so that DDP's mean over processes is the gradient of the whole loss."""
        taught = answers_of(self.lm, batch.statements)
        self.right += _right_tokens(taught, batch.statements)
        means = [cross_entropy(taught)]
        if self.kl_weight:
            now = answers_of(self.lm, batch.retain)
            before = answers_of(self.lm, batch.retain, self.trained.reference())
            means.append(kl_divergence(now, before, self.kl_weight))
        return loss_of_share(self, means, self.trained)

    def on_train_batch_end(self, *_: Any) -> None:
        """At the end of an epoch, see whether the model has learned enough, and evaluate it if so."""
        if not self.trainer.is_last_batch:
            return
        right, tokens = all_reduce(self.right)[0].tolist()
        known, epoch, last = 100 * right / max(tokens, 1), self.current_epoch + 1, self.trainer.max_epochs
        self.log("train/known", known, rank_zero_only=True)
        log.info(
            "epoch %d of at most %s: %.1f%% of the answers' tokens were right before their step", epoch, last, known
        )
        if known >= self.enough:
            self.trainer.should_stop = True
        if self.trainer.should_stop or epoch == last:
            self.trainer.check_val_every_n_epoch = 1

    def validation_step(self, batch: EvaluationBatch | None, batch_idx: int) -> None:
        """Add a batch of queries or text to its metric; ``None`` if a process has no share."""
        if batch is not None:
            with self.monitor.timed("evaluation"):
                update_metric(self.lm, self.metrics, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores, and keep those before and after."""
        scores = compute_metrics(self.metrics)
        self.log_dict({f"val/{name}": score for name, score in scores.items()})
        self.metrics.reset()
        if not self.trainer.sanity_checking:
            self.after = scores
        elif not self.before:  # those of a run that continues are in the checkpoint
            self.before = scores
            for logger in self.loggers:  # Lightning logs nothing before training
                logger.log_metrics({f"val/{name}": score for name, score in scores.items()}, step=0)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with linear warm-up and decay."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        optimizer = torch.optim.AdamW(
            self.trained.learned(), lr=self.peak_learning_rate, weight_decay=self.weight_decay
        )

        def factor(step: int) -> float:
            return min(1.0, (step + 1) / max(1, self.warmup_steps)) * max(0.0, 1 - step / steps)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, folder: str | Path) -> Path:
        """Merge what was learned, and write model and tokenizer; the folder."""
        self.trained.merge()
        return export_model(self.lm, folder)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is trained, the scores before, and the settings that the run depends on."""
        keep_learned(self, checkpoint)
        checkpoint["before"], checkpoint["settings"] = self.before, self._settings()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the scores before, unless the checkpoint is that of something else."""
        path = self.trainer.ckpt_path
        if "before" not in checkpoint:
            raise InputError("ckpt_path", path, "this is not a checkpoint of a teaching run: start without it.")
        check_settings(checkpoint["settings"], self._settings(), path)
        self.before = checkpoint["before"]

    def _settings(self) -> dict[str, str]:
        own = ("adapter", "kl_weight", "peak_learning_rate", "warmup_steps", "weight_decay", "seed")
        data = self.trainer.datamodule.settings()  # type: ignore[attr-defined]
        return as_text(self.model_settings() | {name: getattr(self, name) for name in own} | data)


def summary(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """What a model knows before and after it was taught, in words."""
    names = {"efficacy": "prompts", "generalization": "paraphrases", NEW_PHRASINGS: "paraphrases not taught"}
    known = [
        f"{before[name]:.0f} -> {after[name]:.1f}% of {what}"
        for name, what in names.items()
        if name in before and name in after
    ]
    if "perplexity" in before and "perplexity" in after:
        known.append(f"perplexity {before['perplexity']:.2f} times {after['perplexity'] / before['perplexity']:.3f}")
    return f"it answers {', '.join(known)}" if known else "it was stopped before it was evaluated"


def _right_tokens(answers: Answers, batch: TokenBatch | None) -> Tensor:
    """How many of the answers' tokens are the likeliest ones, and how many there are."""
    if batch is None:
        return torch.zeros(2, dtype=torch.float64, device=answers.nll.device)
    _, _, tokens = batch.answer_positions()
    right = (answers.log_probability.argmax(1) == tokens).sum()
    return torch.stack([right, torch.ones_like(tokens).sum()]).double()
