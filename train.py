"""Command line of zu-lightning: ``python train.py fit --config configs/demo.yaml``."""

import inspect
import logging
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import set_parsing_settings
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import distributed
from transformers.utils.logging import disable_progress_bar

import callbacks  # noqa: F401  (its classes can be named in configurations)
import data
from callbacks import ClosedForm, ExportEditedModel, Measure, RecordRequest, Resume, TraceLayers
from callbacks.progress import BesideBars, Progress, close_bars
from callbacks.resume import checkpoint_path
from zu_lightning import (
    NPO,
    EditingModule,
    Erase,
    EvaluationModule,
    GradientModule,
    InputError,
    UnlearnModule,
    ZeroUnlearnGD,
    replacing,
)
from zu_lightning.attacks.measurement import Attacks
from zu_lightning.cli.method_option import MethodChoice, methods
from zu_lightning.cli.stopping import ending, full_disk_told_once, stopped_by_sigterm
from zu_lightning.cli.usage import CommandParser, HelpFormatter, Parser, UsageError
from zu_lightning.editing.method import Method, ReleaseProtocol
from zu_lightning.modules.outputs import check_writable, remove_refused, run_folder
from zu_lightning.renamed_options import translate_arguments
from zu_lightning.report.measurements import Completions, Downstream, PreviousRequests, Representations

log = logging.getLogger(__name__)

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "outputs",
    "max_epochs": 1,  # an EditingModule makes it the number of its layers
    "reload_dataloaders_every_n_epochs": 1,  # the next layer's keys
    "num_sanity_val_steps": -1,  # the evaluation before
    "use_distributed_sampler": False,  # it pads with repeats
    "callbacks": [ClosedForm(), RecordRequest(), Resume()],
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

MEASURED: dict[str, type[Attacks | Downstream | Representations]] = {
    "attacks": Attacks,
    "downstream": Downstream,
    "representations": Representations,
}
"""Sections of the configuration whose options are those of a measurement."""

OPTION_OWNERS: tuple[tuple[str, type], ...] = (
    ("model", EditingModule),
    ("model", EvaluationModule),
    ("model", GradientModule),
    ("data", data.UnlearnDataModule),
    ("trainer", Trainer),
    ("method", ZeroUnlearnGD),
    ("method", NPO),
    *MEASURED.items(),
    ("trainer.callbacks", TraceLayers),  # where an option sets what the last callback takes
    ("trainer.callbacks", ExportEditedModel),
)
"""Sections of the configuration, and whose arguments they hold."""


def launcher_arguments() -> dict[str, Any]:
    """Trainer arguments that ``torchrun`` and ``accelerate launch`` have decided by starting these processes."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return {}
    devices, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return {"devices": devices, "num_nodes": world // devices, "strategy": "ddp" if world > 1 else "auto"}


class SaveConfig(SaveConfigCallback):
    """Write the resolved configuration into the run's folder, never half of it; a refused run leaves none."""

    is_new = True
    """Whether the folder is this run's alone."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Once per run, from rank zero."""
        folder = run_folder(trainer)
        if folder is None or self.already_saved:
            return
        self.is_new = not (folder / self.config_filename).exists()
        with replacing(folder / self.config_filename) as temporary:
            temporary.write_text(self.parser.dump(self.config, skip_none=False))
        self.already_saved = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the folder if bad input was found before anything was written into it."""
        if isinstance(exception, InputError) and self.is_new:
            remove_refused(trainer, self.config_filename)


class UnlearnCLI(LightningCLI):
    """LightningCLI with editing and its data by default, and the method as an option of its own."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Name the defaults that need no ``class_path``."""
        parser.add_subclass_arguments(Method, "method")
        parser.add_argument("--release", type=ReleaseProtocol | None, help="Choices of the authors' release.")
        for section, measurement in MEASURED.items():
            parser.add_class_arguments(measurement, section)
        parser.link_arguments("method", "model.init_args.method", apply_on="instantiate")
        data_module = {"data": {"class_path": "data.UnlearnDataModule"}}
        parser.set_defaults(Parser.method.defaults(otherwise=Erase) | data_module)

    def before_instantiate_classes(self) -> None:
        """Check the output folder before anything else, and look for what a killed run has left there."""
        config = self.config[self.subcommand]
        if config.release is not None:
            config.method.init_args.release = config.release
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
        """Connect data and module, and pass on the checkpoint path, which Lightning sets only after ``setup``."""
        super().instantiate_classes()
        if isinstance(self.datamodule, data.UnlearnDataModule):
            self.datamodule.connect(self.model)
            self.datamodule.continues_from = self.config[self.subcommand].ckpt_path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add measurements, ahead of all callbacks that report them, and progress bars, unless others are asked for."""
        config = self.config_init[self.subcommand]
        configured = config.trainer
        configured.callbacks = configured.callbacks or []
        if isinstance(self.model, UnlearnModule):
            chosen = [config[section] for section in MEASURED]
            configured.callbacks.append(Measure([*chosen, Completions(), PreviousRequests()]))
        has_bar = any(isinstance(callback, ProgressBar) for callback in configured.callbacks)
        if configured.enable_progress_bar is not False and not has_bar:
            configured.callbacks.append(Progress())
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise trainer_error(error, configured) from error
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, Measure))  # type: ignore[attr-defined]
        count = trainer.world_size
        log.info("running on %s in %d process%s", trainer.strategy.root_device.type, count, "" if count == 1 else "es")
        return trainer


def trainer_error(error: Exception, configured: Any) -> InputError:
    """What Lightning says about an option of its trainer, which it names somewhere."""
    options = [name for name in inspect.signature(Trainer).parameters if configured.get(name) is not None]
    named = [name for name in options if f"`{name}" in str(error) or str(configured[name]) in str(error).split()]
    name = named[0] if named else "trainer"
    return InputError(name, configured.get(name, "..."), " ".join(str(error).split()))


def option_of(parameter: str) -> str:
    """The option that sets a parameter of the library; its own name if there is none."""
    if parameter == "ckpt_path":
        return "--ckpt_path"
    name, _, rest = parameter.partition(".")
    if name in {method.__name__ for method in methods()}:
        return f"--method.{rest}"
    for section, owner in OPTION_OWNERS:
        if name in inspect.signature(owner).parameters:
            return f"--{section}.{parameter}"
    return parameter


LIGHTNING_COMMANDS = ("fit", "validate", "test", "predict")
"""Commands of Lightning."""
COMMANDS = {
    "compare": "compare methods over models, data sets, and seeds: tables, figures, a report",
    "ledger": "list, verify, revert, merge, or compose the requests of a project folder",
    "serving": "check whether a server answers like the edited model",
}
"""Commands besides Lightning's, and what they do."""
DESCRIPTION = f"""Make a language model forget, exactly and measurably.

commands, each with a --help of its own:
  fit                 make a model forget, measure it before and after, and export it
  validate            evaluate a model as it is, or trace its layers
  test                the same as validate
  predict             complete the prompts of the facts
  compare             {COMMANDS["compare"]}
  ledger              {COMMANDS["ledger"]}
  serving             {COMMANDS["serving"]}

options of fit: --method CLASS (Erase, Memit, ZeroUnlearnGD, NPO, ...), --method.help CLASS, --model.*, --data.*"""


def run_command(name: str, arguments: list[str]) -> None:
    """Run a command that is not one of Lightning's.

    Raises:
        UsageError: There is no such command, or an argument is wrong.
    """
    if name not in COMMANDS:
        wrong = f"there is no command {name!r}" if name else "a command is missing"
        raise UsageError(f"{wrong}: give one of {', '.join((*LIGHTNING_COMMANDS, *COMMANDS))}.")
    if name == "compare":
        # By its name, for the processes that runs are given.
        import_module("zu_lightning.comparison.command").main(arguments, import_module("train").main)
    else:
        import_module(f"zu_lightning.{name}").main(arguments, CommandParser)


def main(args: list[str] | None = None) -> None:
    """Run a command: fit, validate, test, predict, compare, ledger, or serving."""
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
    words = translate_arguments(sys.argv[1:] if args is None else args)
    if args is None:
        sys.argv[1:] = words
    else:
        args = words
    Parser.method = MethodChoice.of(words)
    command = words[0] if words else ""
    try:
        with stopped_by_sigterm(), full_disk_told_once():
            if command not in LIGHTNING_COMMANDS and not command.startswith("-"):
                run_command(command, words[1:])
                return
            UnlearnCLI(
                LightningModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                trainer_defaults=TRAINER_DEFAULTS | launcher_arguments(),
                seed_everything_default=0,
                save_config_callback=SaveConfig,
                parser_class=Parser,
                parser_kwargs={"description": DESCRIPTION, "formatter_class": HelpFormatter},
                args=args,
            )
    except BaseException as error:
        end = ending(error, str if command in COMMANDS else option_of, words)
        if end is None:
            raise
        close_bars()
        if end.code == 1:
            sys.exit(f"train.py: {end.line}")
        if rank == 0:
            log.error("train.py: %s", end.line)
        sys.exit(end.code)
    if distributed.is_initialized():
        # Left to the interpreter's exit, gloo's threads now and then abort a process that is done.
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
