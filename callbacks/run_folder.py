"""Where a run writes."""

import tempfile
from pathlib import Path

from lightning import Trainer

from zu_lightning import InputError


def check_writable(folder: str) -> None:
    """Make a folder, and refuse one that cannot be written to.

    Raises:
        InputError: See above.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"trainer.default_root_dir {folder!r} cannot be written to ({error.strerror}): choose another folder."
        ) from error


def run_folder(trainer: Trainer) -> Path | None:
    """The run's folder, ``None`` where this process should not write: on other ranks, and in a fast_dev_run.

    To be called on all ranks, because Lightning broadcasts the folder's name.
    """
    folder = Path(trainer.log_dir or trainer.default_root_dir)
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return folder


def write_whole(path: Path, text: str) -> None:
    """Write a file that has its name only once it is complete."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)
