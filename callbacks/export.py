"""What a run leaves behind: models that can be loaded."""

import logging

import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.run_folder import run_folder, unlearn_module
from zu_lightning import ExportCheck, InputError, PretrainModule, check_export

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
        unlearn_module(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from the first process; also if a run was continued after its last layer and trained nothing.

        Raises:
            RuntimeError: A reloaded model differs from the one in memory.
        """
        folder, module = run_folder(trainer), unlearn_module(pl_module)
        if folder is None:
            return
        if not module.is_done:
            log.warning("the run was stopped early: nothing is exported. Continue it with --ckpt_path last.")
            return
        prompts = [fact.prompt for fact in module.request.forget[:16]]
        with module.monitor.timed("export"):
            model, adapter = module.export(folder)
            found = check_export(module.lm, model, adapter, prompts)
        if not self._agrees(found, exact=module.lm.model.dtype == torch.float32):
            raise RuntimeError(f"what was exported is not the edited model: {found}. Do not use {folder}.")
        log.info(
            "exported %s; reloaded, its logits differ by at most %.1e%s (the edit changed them by %.1e)",
            folder / "model", found.model,
            "" if found.adapter is None else f", and with the adapter by {found.adapter:.1e}", found.edit,
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse modules that train something else.

        Raises:
            InputError: See above.
        """
        if not isinstance(pl_module, PretrainModule):
            raise InputError("model", type(pl_module).__name__, "ExportPretrained needs a zu_lightning.PretrainModule.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from the first process."""
        if run_folder(trainer) is not None and isinstance(pl_module, PretrainModule):
            pl_module.save_half(self.folder, trainer.datamodule.tokenizer)  # type: ignore[attr-defined]
            log.info("exported the trained model to %s", self.folder)
