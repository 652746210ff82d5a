"""Command line of zu-lightning: ``python train.py fit --config configs/demo.yaml``."""

from typing import Any

from callbacks import ClosedForm, Estimate, ExportEditedModel, Measure, RecordRequest, Resume, TraceLayers
from callbacks.progress import Progress
from data import UnlearnDataModule
from zu_lightning.cli import command
from zu_lightning.cli.application import Application

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "outputs",
    "max_epochs": 1,  # an EditingModule makes it the number of its layers
    "reload_dataloaders_every_n_epochs": 1,  # the next layer's keys
    "num_sanity_val_steps": -1,  # the evaluation before
    "use_distributed_sampler": False,  # it pads with repeats
    "callbacks": [ClosedForm(), RecordRequest(), Resume(), Estimate()],
    "enable_model_summary": False,
    "log_every_n_steps": 1,
}

APPLICATION = Application(
    trainer_defaults=TRAINER_DEFAULTS,
    data=UnlearnDataModule,
    measure=Measure,
    progress_bar=Progress,
    callbacks=(TraceLayers, ExportEditedModel),
    entry=("train", "main"),
)


def main(args: list[str] | None = None) -> None:
    """Run a command: fit, validate, test, predict, compare, ledger, or serving."""
    command.main(APPLICATION, args)


if __name__ == "__main__":
    main()
