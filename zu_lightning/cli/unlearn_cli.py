"""Lightning's command line, with methods, measurements, and data that is connected to the module."""

import inspect
import logging
import os
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from zu_lightning import Erase, InputError, Method, ReleaseProtocol, UnlearnModule, replacing
from zu_lightning.cli.application import MEASURED, Application
from zu_lightning.cli.usage import HelpFormatter, Parser
from zu_lightning.modules.outputs import check_writable, checkpoint_path, remove_refused, run_folder
from zu_lightning.report.measurements import Completions, PreviousRequests

log = logging.getLogger(__name__)


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
    """Lightning's commands ``fit``, ``validate``, ``test``, and ``predict``.

    Args:
        application: Default callbacks and data.
        description: What ``--help`` says first.
        args: The words after ``train.py``; those of this process by default.
    """

    def __init__(self, application: Application, description: str, args: list[str] | None) -> None:
        self.application = application
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_defaults=application.trainer_defaults | launcher_arguments(),
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            parser_class=Parser,
            parser_kwargs={"description": description, "formatter_class": HelpFormatter},
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Name the defaults that need no ``class_path``."""
        parser.add_subclass_arguments(Method, "method")
        parser.add_argument("--release", type=ReleaseProtocol | None, help="Choices of the authors' release.")
        for section, measurement in MEASURED.items():
            parser.add_class_arguments(measurement, section)
        parser.link_arguments("method", "model.init_args.method", apply_on="instantiate")
        data = self.application.data
        data_module = {"data": {"class_path": f"{data.__module__}.{data.__name__}"}}
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
        if isinstance(self.datamodule, self.application.data):
            self.datamodule.connect(self.model)
            self.datamodule.continues_from = self.config[self.subcommand].ckpt_path

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add measurements, ahead of all callbacks that report them, and progress bars, unless others are asked for."""
        config = self.config_init[self.subcommand]
        configured = config.trainer
        configured.callbacks = configured.callbacks or []
        if isinstance(self.model, UnlearnModule):
            chosen = [config[section] for section in MEASURED]
            configured.callbacks.append(self.application.measure([*chosen, Completions(), PreviousRequests()]))
        has_bar = any(isinstance(callback, ProgressBar) for callback in configured.callbacks)
        if configured.enable_progress_bar is not False and not has_bar:
            configured.callbacks.append(self.application.progress_bar())
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise trainer_error(error, configured) from error
        measure = self.application.measure
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, measure))  # type: ignore[attr-defined]
        count = trainer.world_size
        log.info("running on %s in %d process%s", trainer.strategy.root_device.type, count, "" if count == 1 else "es")
        return trainer


def trainer_error(error: Exception, configured: Any) -> InputError:
    """What Lightning says about an option of its trainer, which it names somewhere."""
    options = [name for name in inspect.signature(Trainer).parameters if configured.get(name) is not None]
    named = [name for name in options if f"`{name}" in str(error) or str(configured[name]) in str(error).split()]
    name = named[0] if named else "trainer"
    return InputError(name, configured.get(name, "..."), " ".join(str(error).split()))
