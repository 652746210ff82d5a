"""What a run leaves behind: models that can be loaded."""

import logging

import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.run_folder import run_folder
from zu_lightning import (
    PretrainModule,
    UnlearnModule,
    export_adapter,
    export_model,
    largest_logit_difference,
    timed,
)

log = logging.getLogger(__name__)


class ExportEditedModel(Callback):
    """Write ``model/`` and ``adapter/`` into the run's folder, load both again and compare their logits.

    Args:
        tolerance: Largest difference of a logit for float32 weights. Other dtypes are allowed 16 roundings of the
            largest logit.
    """

    def __init__(self, tolerance: float = 1e-4) -> None:
        self.tolerance = tolerance

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from rank zero.

        Raises:
            RuntimeError: A reloaded model differs from the one in memory.
        """
        folder = run_folder(trainer)
        if folder is None or not isinstance(pl_module, UnlearnModule):
            return
        prompts = [fact.prompt for fact in trainer.datamodule.forget[:16]]  # type: ignore[attr-defined]
        with timed(pl_module.seconds, "export"):
            model = export_model(pl_module.lm, folder / "model")
            adapter = export_adapter(pl_module.lm, folder / "adapter")
            difference = largest_logit_difference(pl_module.lm, model, adapter, prompts)
        if not difference <= self._allowed(pl_module):
            raise RuntimeError(
                f"the exported model is not the edited one: logits differ by {difference:.3g} "
                f"(allowed {self._allowed(pl_module):.3g}). Do not use {folder}."
            )
        log.info("exported %s and %s; reloaded, their logits differ by %.1e at most", model, adapter, difference)

    def _allowed(self, module: UnlearnModule) -> float:
        dtype = module.lm.model.dtype
        return self.tolerance if dtype == torch.float32 else 16 * 100 * torch.finfo(dtype).eps


class ExportPretrained(Callback):
    """Write a model trained from scratch as a Hugging Face directory of half-precision weights.

    The weights are rounded to float16, which halves the files, and the configuration says float32, which is what
    ``from_pretrained`` then loads.

    Args:
        folder: Where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from rank zero."""
        if run_folder(trainer) is None or not isinstance(pl_module, PretrainModule):
            return
        pl_module.save_half(self.folder, trainer.datamodule.tokenizer)  # type: ignore[attr-defined]
        log.info("exported the trained model to %s", self.folder)
