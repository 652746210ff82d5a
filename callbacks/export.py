"""Export of the edited model."""

import logging
import math
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer

from zu_lightning import ExportCheck, InputError, PretrainModule, TeachModule, check_export
from zu_lightning.lm.adapter import VLLM_RANKS, adapter_rank, cut_from, serving_commands
from zu_lightning.modules.outputs import run_folder, unlearn_module
from zu_lightning.modules.teach import summary
from zu_lightning.runtime.errors import require_positive

log = logging.getLogger(__name__)


class ExportEditedModel(Callback):
    """Write ``model/`` and ``adapter/`` into the run's folder, load both again, and compare their logits.

    There is no ``adapter/`` if the method does not know its change as low-rank factors. The commands that serve it are
    logged. Name this callback before ``Report``, which then knows how long it took.

    Args:
        tolerance: Largest difference of a logit.
        rounding: For weights of less than 32 bits, where the edited weight was rounded and the adapter was not: largest
            difference that the adapter may have, as a share of what the edit did, besides what rounding a logit can do.
        max_adapter_rank: Servers take no adapter of a rank above 512. By default the adapter is exact, whatever its
            rank. With a number, a higher rank is cut to it by a truncated SVD, and a line says what that did to the
            logits; ``model/`` stays exact.
    """

    def __init__(self, tolerance: float = 1e-4, rounding: float = 0.5, max_adapter_rank: int | None = None) -> None:
        require_positive("max_adapter_rank", max_adapter_rank)
        self.tolerance, self.rounding, self.max_adapter_rank = tolerance, rounding, max_adapter_rank

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module."""
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
            log.warning("The run was stopped early: nothing is exported. Resume it with --ckpt_path last.")
            return
        prompts = [fact.prompt for fact in module.request.forget[:16]]
        with module.monitor.timed("export"):
            model, adapter = module.export(folder, self.max_adapter_rank)
            found = check_export(module.lm, model, adapter, prompts)
        rank, whole_rank = (None, None) if adapter is None else (adapter_rank(adapter), cut_from(adapter))
        if not self._agrees(found, is_cut=whole_rank is not None, exact=module.lm.model.dtype == torch.float32):
            raise RuntimeError(f"what was exported is not the edited model: {found}. Do not use {folder}.")
        log.info(
            "Exported %s: the logits of the reloaded model differ by at most %.1e%s (the edit changed them by %.1e)",
            folder / "model", found.model,
            "" if found.adapter is None else f", those with the adapter by {found.adapter:.1e}", found.edit,
        )  # fmt: skip
        if adapter is not None and rank is not None:
            log.info("Rounding the adapter to bfloat16, as servers do, changes logits by at most %.1e", found.rounded)
            if whole_rank is not None:
                log.warning(
                    "the adapter was cut from rank %d to %d: with it, logits differ by at most %.1e from the edited "
                    "model's (the edit changed them by %.1e)", whole_rank, rank, found.adapter, found.edit,
                )  # fmt: skip
            tell_how_to_serve(module.lm.name_or_path, adapter, rank)

    def _agrees(self, found: ExportCheck, *, is_cut: bool, exact: bool) -> bool:
        allowed = self.tolerance if exact else max(self.tolerance, self.rounding * found.edit + found.spacing)
        if is_cut:
            allowed = math.inf  # the log says how much was cut
        # Written so that NaN does not agree.
        return found.model <= self.tolerance and (found.adapter is None or found.adapter <= allowed)


def tell_how_to_serve(base: str, adapter: Path, rank: int) -> None:
    """Log the command that serves a base with an adapter, or warn that its rank is too high."""
    commands = serving_commands(base, str(adapter), rank)
    if not commands:
        log.info("Serve model/: the adapter belongs to the dequantized weights, which are not those in the GGUF file.")
        return
    if "vLLM" in commands:
        log.info("Serve the base with the adapter (other servers: docs/how-to/serving.md):\n  %s", commands["vLLM"])
        return
    log.warning(
        "the adapter has rank %d, and vLLM takes none above %d: serve model/, or let max_adapter_rank of "
        "callbacks.ExportEditedModel cut it.", rank, VLLM_RANKS[-1],
    )  # fmt: skip


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
        """Check the module.

        Raises:
            InputError: It is not a PretrainModule.
        """
        if not isinstance(pl_module, PretrainModule):
            raise InputError("model", type(pl_module).__name__, "ExportPretrained needs a zu_lightning.PretrainModule.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from the first process."""
        if run_folder(trainer) is not None and isinstance(pl_module, PretrainModule):
            pl_module.save_half(self.folder, trainer.datamodule.tokenizer)  # type: ignore[attr-defined]
            log.info("exported the trained model to %s", self.folder)


class ExportTaught(Callback):
    """Write a model that was taught facts as a Hugging Face directory, and say what it knows.

    Args:
        folder: Where to write; ``model/`` in the run's folder by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the module.

        Raises:
            InputError: It is not a TeachModule.
        """
        if not isinstance(pl_module, TeachModule):
            raise InputError("model", type(pl_module).__name__, "ExportTaught needs a zu_lightning.TeachModule.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Export from the first process."""
        run = run_folder(trainer)
        if run is None or not isinstance(pl_module, TeachModule):
            return
        folder = pl_module.export(run / "model" if self.folder is None else self.folder)
        log.info("wrote %s; %s", folder, summary(pl_module.before, pl_module.after))
