"""What a run leaves behind: models that can be loaded."""

import logging

import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.run_folder import run_folder
from zu_lightning import (
    PretrainModule,
    UnlearnModule,
    check_export,
    export_adapter,
    export_model,
    timed,
)

log = logging.getLogger(__name__)


class ExportEditedModel(Callback):
    """Write ``model/`` and ``adapter/`` into the run's folder, load both again and compare their logits.

    Name it before ``Report``, which then knows how long it took.

    Args:
        tolerance: Largest difference of a logit.
        rounding: For weights of less than 32 bits, where the edited weight was rounded and the adapter was not: largest
            difference that the adapter may have, as a share of what the edit did.
    """

    def __init__(self, tolerance: float = 1e-4, rounding: float = 0.5) -> None:
        self.tolerance, self.rounding = tolerance, rounding

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from rank zero; also where a run went on after its last layer and trained nothing.

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
            found = check_export(pl_module.lm, model, adapter, prompts)
        exact = pl_module.lm.model.dtype == torch.float32
        if not (
            found.model <= self.tolerance
            and found.adapter <= (self.tolerance if exact else max(self.tolerance, self.rounding * found.edit))
        ):
            raise RuntimeError(f"what was exported is not the edited model: {found}. Do not use {folder}.")
        log.info(
            "exported %s and %s; loaded again, their logits differ by %.1e and %.1e at most (the edit: %.1e)",
            model, adapter, found.model, found.adapter, found.edit,
        )  # fmt: skip


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
