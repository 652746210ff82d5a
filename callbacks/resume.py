"""What a killed run leaves behind, so that the same command with ``--ckpt_path last`` goes on where it stopped."""

import hashlib
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks.closed_form import chosen_rule
from zu_lightning import InputError, Latents, LowRankUpdate, Preparation, UnlearnModule

log = logging.getLogger(__name__)


MODEL_SETTINGS = ("model.model_name_or_path", "model.tiny", "model.dtype", "model.load_options", "model.layers")
"""What has to agree where a checkpoint is only evaluated."""


def checkpoint_path(default_root_dir: str) -> Path:
    """Where runs under a folder keep the checkpoint to go on from."""
    return Path(default_root_dir) / "checkpoints" / "last.ckpt"


class Resume(Checkpoint):
    """Save a checkpoint when the targets are known and after each layer, and delete it when all is done.

    An unlearning run is saved as contexts, neutral targets and finished updates, never as weights: those are the
    unedited model's with the updates added again.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The targets, the dearest part of a run, are known now."""
        if trainer.current_epoch == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A layer is done."""
        self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to go on with, unless Lightning was told to stop early (``max_time``)."""
        stopped = isinstance(pl_module, UnlearnModule) and pl_module.layers_left
        if trainer.is_global_zero and not trainer.fast_dev_run and not stopped:  # type: ignore[attr-defined]
            checkpoint_path(trainer.default_root_dir).unlink(missing_ok=True)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Leave out what can be had again: every layer starts with a fresh Delta and a fresh optimizer."""
        if not isinstance(pl_module, UnlearnModule):
            return
        known: Preparation = trainer.datamodule.known  # type: ignore[attr-defined]
        checkpoint["state_dict"], checkpoint["optimizer_states"] = {}, []
        checkpoint["unlearning"] = {
            "settings": _settings(trainer, pl_module),
            "contexts": list(known.contexts),
            "targets": vars(known.targets),
            "updates": {layer: vars(pl_module.lm.updates[layer]) for layer in pl_module.layer_figures},
            "layer_figures": pl_module.layer_figures,
            "seconds": pl_module.seconds,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Hand back what was saved; the updates wait until the unedited model is no longer needed.

        Raises:
            InputError: The checkpoint was written by a run with other settings.
        """
        if not isinstance(pl_module, UnlearnModule):
            return
        if "unlearning" not in checkpoint:
            raise InputError("--ckpt_path: this is no checkpoint of an unlearning run: start without it.")
        saved = checkpoint["unlearning"]
        for name, value in _settings(trainer, pl_module).items():
            if saved["settings"][name] != value and (trainer.state.fn == "fit" or name in MODEL_SETTINGS):
                raise InputError(
                    f"--ckpt_path: the checkpoint was written by a run with another {name} "
                    f"({saved['settings'][name]:.200}) than this one ({value:.200}): start without it, or with the "
                    "settings of that run."
                )
        device = pl_module.lm.device
        targets = Latents(**{name: value.to(device) for name, value in saved["targets"].items()})
        trainer.datamodule.known = Preparation(tuple(saved["contexts"]), {}, targets)  # type: ignore[attr-defined]
        pl_module.layer_figures, pl_module.seconds = saved["layer_figures"], saved["seconds"]
        pl_module.updates_to_restore = {
            layer: LowRankUpdate(**{name: factor.to(device) for name, factor in update.items()})
            for layer, update in saved["updates"].items()
        }
        if trainer.state.fn != "fit":
            pl_module.restore_updates()
        log.info("going on: layers %s are done, %s are left", list(saved["updates"]), pl_module.layers_left)

    @staticmethod
    def _save(trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = checkpoint_path(trainer.default_root_dir)
        partial = path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(path)


def _settings(trainer: Trainer, module: UnlearnModule) -> dict[str, str]:
    """All that decides about the weights that a run ends with, as text, by option."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    rule = chosen_rule(trainer)
    descent = (module.parametrisation, module.learning_rate, module.steps, module.tolerance)
    settings = {
        "closed_form.rule": rule,
        "model.model_name_or_path": module.model_name_or_path,
        "model.tiny": module.tiny,
        "model.layers": module.layers,
        "model.dtype": module.dtype_name,
        "model.load_options": {name: module.load_options.get(name) for name in ("revision", "subfolder")},
        "model.neutral_target": module.neutral_target,
        "model.optimise_values": module.optimise_values,
        "model.latents": asdict(module.latents),
        "model.objective": asdict(module.objective) if rule is None else None,
        "model.delta": descent if rule is None else None,
        "data.path, or another option that decides which facts are drawn and how they are read": _digest(data.forget),
        "data.corpus": (data.corpus_source, _digest(data.corpus), data.max_length, data.corpus_tokens),
    }
    return {name: repr(value) for name, value in settings.items()}


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()
