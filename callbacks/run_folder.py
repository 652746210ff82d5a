"""Where a run writes."""

from pathlib import Path

from lightning import Trainer


def run_folder(trainer: Trainer) -> Path | None:
    """The run's folder, ``None`` where this process should not write: on other ranks, and in a fast_dev_run."""
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return Path(trainer.log_dir or trainer.default_root_dir)
