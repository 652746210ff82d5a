"""How a run comes to an early end: what the user reads, and with which exit code."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple, NoReturn

from lightning.pytorch.utilities.exceptions import SIGTERMException

from zu_lightning import InputError
from zu_lightning.cli.usage import UsageError, usage_line
from zu_lightning.runtime.files import NO_ROOM, DiskFullError, out_of_room


class Ending(NamedTuple):
    """The exit code of a run that did not come to its end, and the line that says why."""

    code: int
    line: str


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within this context SIGTERM ends a run like Ctrl-C does: at once, leaving what it was writing as it was.

    Lightning only takes note of the signal and stops after some batch, which is too late for phases that have none; but
    it calls the handlers that were there before its own.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        raise SIGTERMException(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def full_disk_told_once() -> Iterator[None]:
    """Within this context a thread that finds the disk full is silent: TensorBoard's fails again in the main one."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is None or out_of_room(args.exc_value) is None:
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def ending(error: BaseException, option_of: Callable[[str], str], words: Sequence[str]) -> Ending | None:
    """How a run ends that was stopped by an error of the user, the disk, or a signal; ``None`` if it is another error.

    Args:
        error: What came out of the run.
        option_of: Gives the option that sets a parameter of the library.
        words: The command line.
    """
    notes = " ".join(dict.fromkeys(note for one in _before(error) for note in getattr(one, "__notes__", ())))
    for cause in _behind(error):
        if isinstance(cause, InputError):
            return Ending(1, f"error: {cause.message(cause.parameter if cause.where else option_of(cause.parameter))}")
        if isinstance(cause, UsageError):
            return Ending(2, f"error: {usage_line(str(cause), option_of, words)}")
        if isinstance(cause, KeyboardInterrupt):
            return Ending(128 + signal.SIGINT, f"interrupted (Ctrl-C). {notes}".strip())
        if isinstance(cause, SIGTERMException):
            return Ending(128 + signal.SIGTERM, f"terminated (SIGTERM). {notes}".strip())
        if isinstance(cause, DiskFullError):
            return Ending(1, f"error: {cause} {notes}".strip())
        if (number := out_of_room(cause)) is not None:
            file = getattr(cause, "filename", None) or "a file in the run's folder"
            return Ending(1, f"error: {file} cannot be written: {NO_ROOM[number]}. Free some space. {notes}".strip())
    return None


def _before(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those before it: a second one may be raised while the first is handled."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then what caused it: jsonargparse wraps what a constructor raises, and Lightning exits on Ctrl-C."""
    while error is not None:
        yield error
        is_exit = isinstance(error, SystemExit)
        error = error.__cause__ or (error.__context__ if is_exit else None)
