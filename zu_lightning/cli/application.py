"""What the command line runs by default, and which option sets a parameter of the library."""

import inspect
from dataclasses import dataclass
from typing import Any

from lightning import Callback, Trainer

from zu_lightning import NPO, EditingModule, EvaluationModule, GradientModule, ZeroUnlearnGD
from zu_lightning.attacks.measurement import Attacks
from zu_lightning.cli.method_option import methods
from zu_lightning.report.measurements import Downstream, Representations

MEASURED: dict[str, type[Attacks | Downstream | Representations]] = {
    "attacks": Attacks,
    "downstream": Downstream,
    "representations": Representations,
}
"""Sections of the configuration whose options are those of a measurement."""


@dataclass(frozen=True)
class Application:
    """What the folders ``callbacks`` and ``data`` add to the library, which does not import them.

    Attributes:
        trainer_defaults: Arguments of the trainer, unless a configuration has others.
        data: The data module of requests, which is connected to the module.
        measure: The callback that takes measurements before and after.
        progress_bar: The callback that shows progress.
        callbacks: Callbacks whose arguments are options, ``trainer.callbacks.NAME``.
        entry: Module and name of the function that runs a command line, for other processes.
    """

    trainer_defaults: dict[str, Any]
    data: type[Any]
    measure: type[Any]
    progress_bar: type[Callback]
    callbacks: tuple[type[Callback], ...]
    entry: tuple[str, str]

    def option_of(self, parameter: str) -> str:
        """The option that sets a parameter of the library; its own name if there is none."""
        if parameter == "ckpt_path":
            return "--ckpt_path"
        name, _, rest = parameter.partition(".")
        if name in {method.__name__ for method in methods()}:
            return f"--method.{rest}"
        owners: dict[str, tuple[type, ...]] = {
            "model": (EditingModule, EvaluationModule, GradientModule),
            "data": (self.data,),
            "trainer": (Trainer,),
            "method": (ZeroUnlearnGD, NPO),
            **{section: (measurement,) for section, measurement in MEASURED.items()},
            "trainer.callbacks": self.callbacks,
        }
        for section, classes in owners.items():
            if any(name in inspect.signature(cls).parameters for cls in classes):
                return f"--{section}.{parameter}"
        return parameter
