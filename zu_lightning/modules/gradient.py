"""Gradient methods: a loss on what the model says, minimized over some of its weights."""

import math
import random
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from zu_lightning.gradient.method import NPO, Answers, GradientMethod, Part
from zu_lightning.gradient.weights import FullWeights, LoraWeights, TrainedWeights
from zu_lightning.lm import hooks
from zu_lightning.lm.export import export_model
from zu_lightning.lm.tokens import Prompt, TokenBatch, TokenizedText, tokenize_all
from zu_lightning.modules.base import UnlearnModule
from zu_lightning.modules.training import answers_of, keep_learned, loss_of_share, own_share
from zu_lightning.runtime.errors import InputError


@dataclass(frozen=True)
class GradientBatch:
    """One process's share of the texts of a step, by part; a part of which it has nothing is ``None``."""

    forget: TokenBatch | None
    neutral: TokenBatch | None
    retain: TokenBatch | None


class GradientModule(UnlearnModule):
    """Trains weights of the language model to forget, such as ``GradientModule(method=NPO())``.

    Batches, losses, and gradients do not depend on the number of processes, unless an adapter has dropout.

    Args:
        method: What to minimize, over which weights, and how.
        kwargs: Arguments of :class:`UnlearnModule`.
    """

    method: GradientMethod
    trained: TrainedWeights

    def __init__(self, method: GradientMethod = NPO(), **kwargs: Any) -> None:
        super().__init__(method=method, **kwargs)
        if not isinstance(method, GradientMethod):
            remedy = f"it trains no weights of the model: it needs a {method.module}."
            raise InputError("method", method.name, remedy)
        self.keep: list[TokenizedText] = []
        """Protected facts, or else documents of the retain text."""

    def setup(self, stage: str) -> None:
        """Train for as many epochs as asked for, and evaluate after the last one."""
        super().setup(stage)
        if stage == "fit" and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.trainer.fit_loop.max_epochs = self.method.training.epochs
            self.trainer.check_val_every_n_epoch = self.method.training.epochs

    def configure_model(self) -> None:
        """Load the language model, and register what is trained."""
        super().configure_model()
        if hasattr(self, "trained"):
            return
        if self.lm.is_dispatched:
            remedy = "a gradient method cannot train a model that is spread over devices: leave out its device_map."
            raise InputError("load_options", self.load_options, remedy)
        if self.method.weights == "lora":
            self.trained = LoraWeights(self.lm, self.layers, self.method.lora, self.request.seed)
        else:
            layers = None if self.method.weights == "all" else self.layers
            self.trained = FullWeights(self.lm, layers, keep_originals=bool(layers) or self.method.uses_reference)

    def training_batches(self) -> Iterable[GradientBatch]:
        """Each fact once, in an order that depends on the seed and the epoch, with as many texts to keep."""
        request, size = self.request, self.method.training.batch_size
        if self.method.retain_weight and not self.keep:
            self.keep = self._texts_to_keep()
        rng = random.Random(f"{request.seed} {self.current_epoch}")
        facts = rng.sample(list(request.forget), len(request.forget))
        for start in range(0, len(facts), size):
            some = facts[start : start + size]
            true = tokenize_all(self.lm.tokenizer, [Prompt.about(fact, answer=fact.target) for fact in some])
            neutral = tokenize_all(self.lm.tokenizer, [Prompt.about(fact, answer=self.neutral_target) for fact in some])
            retain = rng.sample(self.keep, min(len(some), len(self.keep)))
            yield GradientBatch(*(own_share(self.lm, texts) for texts in (true, neutral, retain)))

    def training_step(self, batch: GradientBatch, batch_idx: int) -> Tensor:
        """The loss of this process's share, so that DDP's mean over processes is the gradient of the whole loss."""
        return loss_of_share(self, self.method(_Views(self, batch)), self.trained)

    def on_train_batch_start(self, batch: GradientBatch, batch_idx: int) -> None:
        """Time the step, with its gradients."""
        self.step = ExitStack()
        self.step.enter_context(self.monitor.timed("training"))

    def on_train_batch_end(self, outputs: Any, batch: GradientBatch, batch_idx: int) -> None:
        """The step is done."""
        self.step.close()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with linear warm-up and decay."""
        options, parameters = self.method.training, self.trained.learned()
        rate = options.learning_rate * (_root_mean_square(parameters) if options.scale_free else 1.0)
        optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=options.weight_decay)
        steps = -(-len(self.request.forget) // options.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: options.factor((step + 1) / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is trained, not the frozen weights around it."""
        super().on_save_checkpoint(checkpoint)
        keep_learned(self, checkpoint)

    def export(self, folder: Path, max_adapter_rank: int | None = None) -> tuple[Path, Path | None]:
        """Write the adapter before it is merged, then the model."""
        adapter = self.trained.write_adapter(folder / "adapter", max_adapter_rank)
        self.trained.merge()
        return export_model(self.lm, folder / "model"), adapter

    def _texts_to_keep(self) -> list[TokenizedText]:
        tokenizer, length = self.lm.tokenizer, self.method.training.retain_length
        if self.request.protect:
            return tokenize_all(tokenizer, [Prompt.about(fact, answer=fact.target) for fact in self.request.protect])
        documents = tokenize_all(tokenizer, self.request.text.documents, length)
        return [TokenizedText(text.ids, 0, 1) for text in documents if len(text.ids) > 1]


def _root_mean_square(parameters: Sequence[nn.Parameter]) -> float:
    squares = sum(parameter.detach().float().square().sum().item() for parameter in parameters)
    return math.sqrt(squares / sum(parameter.numel() for parameter in parameters))


class _Views:
    """What a loss may ask, for one batch; a part without texts has no rows."""

    def __init__(self, module: GradientModule, batch: GradientBatch) -> None:
        self.module, self.batch = module, batch

    def answers(self, part: Part, *, reference: bool = False) -> Answers:
        """What the model says about the answers of a part."""
        trained = self.module.trained
        return answers_of(self.module.lm, getattr(self.batch, part), trained.reference() if reference else None)

    def states(self, part: Part, *, reference: bool = False) -> Tensor:
        """Outputs of the highest edited layer at all tokens of a part."""
        lm, batch = self.module.lm, getattr(self.batch, part)
        if batch is None:
            return torch.zeros(0, lm.weight(0).shape[0], device=lm.device)
        layer, nowhere = lm.layers[self.module.layers[-1]], batch.lengths[:0]
        with self.module.trained.reference() if reference else nullcontext(), torch.set_grad_enabled(not reference):
            states = hooks.output_of(
                layer, lambda: lm.logits(batch, nowhere, nowhere, watched=[layer]), len(batch.lengths), lm.device
            )
        return states[batch.attention_mask.bool()]
