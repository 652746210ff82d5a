"""Command line of zu-lightning: ``python train.py fit --config configs/demo.yaml``."""

import inspect
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import distributed
from transformers.utils.logging import disable_progress_bar

import callbacks  # noqa: F401  (its classes can be named in configurations)
import data
from callbacks import Attacks, ClosedForm, Downstream, RecordRequest, Resume, TraceLayers
from callbacks.progress import BesideBars, Progress
from callbacks.resume import checkpoint_path
from callbacks.run_folder import check_writable, run_folder
from zu_lightning import EditingModule, EvaluationModule, GradientModule, InputError, replacing

log = logging.getLogger(__name__)

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "outputs",
    "max_epochs": 1,  # an EditingModule makes it the number of its layers
    "reload_dataloaders_every_n_epochs": 1,  # the next layer's keys
    "num_sanity_val_steps": -1,  # the evaluation before
    "use_distributed_sampler": False,  # it pads with repeats
    "callbacks": [RecordRequest(), Resume()],
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}

QUIET = (
    ".*sync_dist=True.*",  # the scores that are logged are torchmetrics' sums over all processes already
    ".*does not have many workers.*",  # batches are made in this process, where the language model is
    ".*`IterableDataset` has `__len__` defined.*",  # with workers it would be wrong; there are none
    ".*Total length of .* across ranks is zero.*",  # a run that was killed after its last layer only has to export
    ".*in eval mode at the start of training.*",  # gradient methods train the model as it is used, without dropout
    ".*isinstance.treespec, LeafSpec.*",  # Lightning calls torch by an old name,
    ".*is_gradient_checkpointing. is deprecated.*",  # and PEFT transformers
)
"""Warnings of other packages that a user can do nothing about."""

QUIET_LOGGERS = ("httpx", "lightning.fabric", "lightning.pytorch")
"""Loggers of other packages whose ordinary lines, such as tips and lists of absent hardware, tell a user nothing."""

OPTION_OWNERS: tuple[tuple[str, type], ...] = (
    ("model", EditingModule),
    ("model", EvaluationModule),
    ("model", GradientModule),
    ("data", data.UnlearnDataModule),
    ("trainer", Trainer),
    ("closed_form", ClosedForm),
    ("attacks", Attacks),
    ("trainer.callbacks", Downstream),  # where an option sets what the last callback takes
    ("trainer.callbacks", TraceLayers),
)
"""Sections of the configuration, and whose arguments they hold."""


def launcher_arguments() -> dict[str, Any]:
    """Trainer arguments that ``torchrun`` and ``accelerate launch`` have decided by starting these processes."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return {}
    devices, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return {"devices": devices, "num_nodes": world // devices, "strategy": "ddp" if world > 1 else "auto"}


class SaveConfig(SaveConfigCallback):
    """Write the resolved configuration into the run's folder, never half of it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Once per run, from rank zero."""
        folder = run_folder(trainer)
        if folder is None or self.already_saved:
            return
        with replacing(folder / self.config_filename) as temporary:
            temporary.write_text(self.parser.dump(self.config, skip_none=False))
        self.already_saved = True


class UnlearnCLI(LightningCLI):
    """LightningCLI with editing and its data by default, and the closed form's rule as ``closed_form``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Name the defaults that need no ``class_path``."""
        parser.add_lightning_class_args(ClosedForm, "closed_form")
        parser.add_lightning_class_args(Attacks, "attacks")
        parser.set_defaults(
            {
                "model": {"class_path": "zu_lightning.EditingModule"},
                "data": {"class_path": "data.UnlearnDataModule"},
            }
        )

    def before_instantiate_classes(self) -> None:
        """Check the output folder before anything else, and look for what a killed run has left there."""
        config = self.config[self.subcommand]
        folder = config.trainer.default_root_dir
        check_writable(folder)
        for name, value in launcher_arguments().items():  # whatever a configuration says: the processes exist
            config.trainer[name] = value
        if config.ckpt_path not in (None, "last") and not Path(config.ckpt_path).is_file():
            raise InputError("ckpt_path", config.ckpt_path, "there is no such file: name a checkpoint, or `last`.")
        if config.ckpt_path == "last":
            path = checkpoint_path(folder)
            config.ckpt_path = str(path) if path.exists() else None
            log.info("continuing from %s" if path.exists() else "%s does not exist: starting from the beginning", path)

    def instantiate_classes(self) -> None:
        """Tell the data whether a run is continued, which Lightning says too late for its ``setup``."""
        super().instantiate_classes()
        if isinstance(self.datamodule, data.UnlearnDataModule):
            self.datamodule.continues = self.config[self.subcommand].ckpt_path is not None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add progress bars that match those of longer steps, unless others are asked for."""
        configured = self.config_init[self.subcommand].trainer
        chosen = configured.callbacks or []
        if configured.enable_progress_bar is not False and not any(isinstance(c, ProgressBar) for c in chosen):
            configured.callbacks = [*chosen, Progress()]
        trainer = super().instantiate_trainer(**kwargs)
        count = trainer.world_size
        log.info("running on %s in %d process%s", trainer.strategy.root_device.type, count, "" if count == 1 else "es")
        return trainer


def option_of(parameter: str) -> str:
    """The option that sets a parameter of the library; its own name if there is none."""
    if parameter == "ckpt_path":
        return "--ckpt_path"
    name = parameter.partition(".")[0]
    for section, owner in OPTION_OWNERS:
        if name in inspect.signature(owner).parameters:
            return f"--{section}.{parameter}"
    return parameter


def input_error(error: BaseException | None) -> InputError | None:
    """The bad input that caused an error, if any: jsonargparse wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def main(args: list[str] | None = None) -> None:
    """Run a subcommand: fit, validate, test or predict."""
    # The help of options that are fields of a dataclass stands below the fields; looking for it takes seconds.
    asks_for_help = any("help" in word for word in args or sys.argv)
    set_parsing_settings(docstring_parse_attribute_docstrings=asks_for_help)
    rank = rank_zero_only.rank  # type: ignore[attr-defined]
    level = logging.INFO if rank == 0 else logging.WARNING
    logging.basicConfig(format="%(message)s", level=level, handlers=[BesideBars()])
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    try:
        UnlearnCLI(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=TRAINER_DEFAULTS | launcher_arguments(),
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            args=args,
        )
    except ValueError as error:
        bad = input_error(error)
        if bad is None:
            raise
        name = bad.parameter if bad.where else option_of(bad.parameter)
        sys.exit(f"train.py: error: {bad.message(name)}")
    if distributed.is_initialized():
        # Left to the interpreter's exit, gloo's threads now and then abort a process that is done.
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
