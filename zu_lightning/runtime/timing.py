"""What somebody who waits wants to see: seconds by phase, and progress bars."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch
from tqdm.auto import tqdm


@dataclass
class Monitor:
    """Watches long work.

    Attributes:
        seconds: Seconds spent in each phase so far.
        progress: Whether to show progress bars.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    progress: bool = False

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the seconds spent in this context to those of ``phase``."""
        _wait()
        start = time.perf_counter()
        try:
            yield
        finally:
            _wait()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start

    def bar(self, name: str, total: int, unit: str, done: int = 0) -> Any:
        """A progress bar (tqdm) that counts ``unit`` from ``done`` up to ``total``."""
        return tqdm(total=total, initial=done, desc=name, unit=f" {unit}", disable=not self.progress, leave=False)


def _wait() -> None:
    """Wait for a GPU, which may still be busy when a call returns: its time belongs to the phase that asked for it."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def now() -> str:
    """The time, as results and ledgers give it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def in_words(seconds: float) -> str:
    """A time for a reader, rounded to what an estimate can tell.

    Example:
        >>> in_words(0.42), in_words(12.3), in_words(147), in_words(4000), in_words(16000)
        ('1 s', '12 s', '2 min 30 s', '1 h 5 min', '4 h 30 min')
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    unit, names = (10, ("min", "s")) if seconds < 3600 else (300, ("h", "min"))
    whole, rest = divmod(round(seconds / unit) * unit, 60 if seconds < 3600 else 3600)
    rest = rest if seconds < 3600 else rest // 60
    return f"{whole} {names[0]} {rest} {names[1]}" if rest else f"{whole} {names[0]}"
