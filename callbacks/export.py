"""What a run leaves behind: models that can be loaded."""

import logging

import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.run_folder import run_folder, unlearning
from zu_lightning import ExportCheck, InputError, PretrainModule, check_export, export_adapter, export_model

log = logging.getLogger(__name__)


class ExportEditedModel(Callback):
    """Write ``model/`` and ``adapter/`` into the run's folder, load both again, and compare their logits.

    There is no ``adapter/`` if the method does not know its change as low-rank factors. Name this callback before
    ``Report``, which then knows how long it took.

    Args:
        tolerance: Largest difference of a logit.
        rounding: For weights of less than 32 bits, where the edited weight was rounded and the adapter was not: largest
            difference that the adapter may have, as a share of what the edit did.
    """

    def __init__(self, tolerance: float = 1e-4, rounding: float = 0.5) -> None:
        self.tolerance, self.rounding = tolerance, rounding

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that have nothing to export."""
        unlearning(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from the first process; also if a run was continued after its last layer and trained nothing.

        Raises:
            RuntimeError: A reloaded model differs from the one in memory.
        """
        folder, module = run_folder(trainer), unlearning(pl_module)
        if folder is None:
            return
        prompts = [fact.prompt for fact in module.request.forget[:16]]
        with module.monitor.timed("export"):
            updates = module.updates()
            model = export_model(module.lm, folder / "model")
            adapter = export_adapter(module.lm, updates, folder / "adapter") if updates else None
            found = check_export(module.lm, model, adapter, prompts)
        if not self._agrees(found, exact=module.lm.model.dtype == torch.float32):
            raise RuntimeError(f"what was exported is not the edited model: {found}. Do not use {folder}.")
        log.info(
            "exported %s; loaded again, the logits differ by %.1e at most, with the adapter by %s (the edit: %.1e)",
            folder / "model", found.model, "none" if found.adapter is None else f"{found.adapter:.1e}", found.edit,
        )  # fmt: skip

    def _agrees(self, found: ExportCheck, *, exact: bool) -> bool:
        allowed = self.tolerance if exact else max(self.tolerance, self.rounding * found.edit)
        # Written so that NaN does not agree.
        return found.model <= self.tolerance and (found.adapter is None or found.adapter <= allowed)


class ExportPretrained(Callback):
    """Write a model trained from scratch as a Hugging Face directory of half-precision weights.

    The weights are rounded to float16, which halves the files, and the configuration says float32, which is what
    ``from_pretrained`` then loads.

    Args:
        folder: Where to write.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from the first process.

        Raises:
            InputError: The module trains something else.
        """
        if not isinstance(pl_module, PretrainModule):
            raise InputError("model", type(pl_module).__name__, "ExportPretrained needs a zu_lightning.PretrainModule.")
        if run_folder(trainer) is not None:
            pl_module.save_half(self.folder, trainer.datamodule.tokenizer)  # type: ignore[attr-defined]
            log.info("exported the trained model to %s", self.folder)
