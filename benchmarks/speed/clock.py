"""Seconds by phase, on a CPU or a GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Times phases of work on a device.

    Args:
        device: Where the work is done. The clock waits for a GPU, which may still be busy when a call returns.

    Attributes:
        seconds: Seconds spent in each phase so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str, factor: float = 1.0) -> Iterator[None]:
        """Add the seconds spent in this context, times ``factor``, to those of ``phase``."""
        self._wait()
        begin = time.perf_counter()
        yield
        self._wait()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + factor * (time.perf_counter() - begin)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
