"""What a run prints: log lines above the progress bars, and no warnings that a user can do nothing about."""

import logging
import sys
import warnings

from lightning_utilities.core.rank_zero import rank_zero_only
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

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


class BesideBars(logging.Handler):
    """Writes log lines above the progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line to standard error."""
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:  # as logging handlers do
            self.handleError(record)


def close_bars() -> None:
    """End all progress bars."""
    for bar in list(tqdm._instances):  # type: ignore[attr-defined]
        bar.close()


def set_up_logging() -> None:
    """Log from the first process, and warnings from all; leave out what other packages repeat."""
    level = logging.INFO if rank_zero_only.rank == 0 else logging.WARNING  # type: ignore[attr-defined]
    logging.basicConfig(format="%(message)s", level=level, handlers=[BesideBars()])
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
