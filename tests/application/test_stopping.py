"""Early ends: which ones are told in a line, and that signals and threads are left as they were."""

import errno
import os
import signal
import threading

import pytest

import train
from zu_lightning import InputError
from zu_lightning.cli.stopping import ending, full_disk_told_once, stopped_by_sigterm

option_of = train.APPLICATION.option_of
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raised(error: BaseException, while_dealing_with: BaseException) -> BaseException:
    """An error as it is after another one."""
    error.__context__ = while_dealing_with
    return error


def test_a_full_disk_that_shows_while_another_error_is_dealt_with_still_says_how_to_continue() -> None:
    first = RuntimeError("the first")
    first.add_note("Do this.")
    end = ending(raised(FULL, first), option_of, [])
    assert end == (
        1,
        "error: a file in the run's folder cannot be written: the disk is full. Free some space. Do this.",
    )


def test_input_is_not_to_blame_for_an_error_that_came_after_it() -> None:
    assert ending(raised(RuntimeError("a bug"), InputError("steps", 0, "remedy")), option_of, []) is None


@pytest.mark.parametrize("error", [SystemExit(0), SystemExit(3), RuntimeError("a bug")], ids=str)
def test_other_ends_are_left_alone(error: BaseException) -> None:
    assert ending(error, option_of, []) is None


def test_sigterm_stops_at_once_and_its_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped, stopped_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("error", "told"), [(FULL, False), (RuntimeError("a bug"), True)], ids=["full", "bug"])
def test_a_thread_does_not_repeat_that_the_disk_is_full(
    error: Exception, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)

    def fail() -> None:
        raise error

    with full_disk_told_once():
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert bool(said) == told
