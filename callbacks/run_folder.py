"""Where a run writes."""

from pathlib import Path

from lightning import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """The run's folder, ``None`` where this process should not write: on other ranks, and in a fast_dev_run.

    To be called on all ranks, because Lightning broadcasts the folder's name.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return folder
