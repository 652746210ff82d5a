"""Seconds by phase, and progress bars."""

import pytest

from zu_lightning import Monitor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that a monitor sees, its last item."""
    now = [100.0]
    monkeypatch.setattr("zu_lightning.runtime.timing.time.perf_counter", lambda: now[-1])
    return now


def test_seconds_of_a_phase_are_added_up(clock: list[float]) -> None:
    monitor = Monitor()
    for phase, seconds in (("load", 2.0), ("solve", 5.0), ("load", 1.5)):
        with monitor.timed(phase):
            clock.append(clock[-1] + seconds)
        clock.append(clock[-1] + 1000.0)
    assert monitor.seconds == {"load": 3.5, "solve": 5.0}


def test_a_phase_that_fails_is_timed_too(clock: list[float]) -> None:
    monitor = Monitor()

    def fail() -> None:
        clock.append(clock[-1] + 4.0)
        raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"), monitor.timed("solve"):
        fail()
    assert monitor.seconds == {"solve": 4.0}


def test_a_bar_is_shown_only_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (False, True):
        with Monitor(progress=progress).bar("Retain keys", 10, "tokens", done=4) as bar:
            bar.update(6)
        shown = capsys.readouterr().err
        assert ("Retain keys" in shown) == progress
    assert "tokens" in shown
    assert "4/10" in shown
