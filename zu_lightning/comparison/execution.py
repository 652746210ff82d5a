"""Running a comparison: on this machine, one run per GPU, or on a cluster through submitit."""

import logging
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from queue import Queue
from typing import Any

import torch

from zu_lightning import InputError
from zu_lightning.comparison.runs import Run

log = logging.getLogger(__name__)

Entry = Callable[[list[str]], None]
"""Runs a command line, such as ``train.main``; importable by its name in another process."""


@dataclass(frozen=True)
class Slot:
    """A share of this machine.

    Attributes:
        device: The GPU that a run may see, as in ``CUDA_VISIBLE_DEVICES``; ``None`` for all.
        threads: Number of CPU threads; ``None`` for all.
    """

    device: str | None = None
    threads: int | None = None


def slots(jobs: int | None) -> list[Slot]:
    """One slot per GPU, or on the CPU as many as asked for (by default one), with equal shares of the cores."""
    count = torch.cuda.device_count()
    if count:
        allowed = os.environ.get("CUDA_VISIBLE_DEVICES")  # a scheduler may have lent us some of the GPUs
        gpus = allowed.split(",") if allowed else [str(i) for i in range(count)]
        return [Slot(gpu) for gpu in gpus[: jobs or count]]
    count = jobs or 1
    return [Slot(threads=max(1, (os.cpu_count() or 1) // count))] * count


def execute(run: Run, entry: Entry, slot: Slot = Slot()) -> str:
    """Run a command in a process of its own, and keep what it prints in its folder.

    The process is forked from a server that has imported everything already, which takes longer than a small run.

    Args:
        run: What to run.
        entry: Runs its command line.
        slot: Where.

    Returns:
        How it failed: the last error that it printed; empty if it succeeded.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([entry.__module__])
    process = context.Process(target=_fit, args=(run, entry, slot))
    process.start()
    process.join()
    code, error = process.exitcode or 0, ""
    if code > 0:
        error = error_in(run.output.read_text(errors="replace"))
    elif code < 0:
        error = f"the process was killed by signal {-code}"
    run.finish(error)
    return error


def run_here(runs: Sequence[Run], entry: Entry, places: Sequence[Slot], report: Callable[[Run, str], None]) -> None:
    """Run on this machine, as many at a time as there are slots.

    Args:
        runs: What to run.
        entry: Runs their command lines.
        places: Where.
        report: Called with each run when it has ended, and with how it failed, or with an empty text.
    """
    free: Queue[Slot] = Queue()
    for place in places:
        free.put(place)

    def one(run: Run) -> None:
        place = free.get()
        try:
            report(run, execute(run, entry, place))
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool:
        list(pool.map(one, runs))


def run_on_cluster(
    runs: Sequence[Run], entry: Entry, folder: Path, options: dict[str, Any], report: Callable[[Run, str], None]
) -> None:
    """Submit runs as an array of jobs, one GPU each, and wait for them.

    Args:
        runs: What to run.
        entry: Runs their command lines.
        folder: Where submitit keeps its files; all machines must see it.
        options: ``cluster`` (``slurm``, or ``local`` to try it), and parameters of
            ``submitit.AutoExecutor``, such as ``slurm_partition``.
        report: As in :func:`run_here`.
    """
    import submitit  # an optional extra

    parameters = {"gpus_per_node": 1, "timeout_min": 24 * 60} | options
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=parameters.pop("cluster"))
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, RuntimeError, ValueError) as error:
        raise InputError("cluster-options", options, f"submitit does not take them ({error}): correct them.") from error
    jobs = executor.map_array(partial(execute, entry=entry), runs)
    log.info("submitted %d jobs; what they print is in %s", len(jobs), folder)
    for run, job in zip(runs, jobs, strict=True):
        try:
            report(run, job.result())
        except Exception as error:  # whatever a cluster does to a job, the others continue
            message = error_in(f"{type(error).__name__}: {error}")
            run.finish(message)
            report(run, message)


def error_in(output: str) -> str:
    """The last line that mentions an error, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no output")


def _fit(run: Run, entry: Entry, slot: Slot) -> None:
    """In a process of its own: what ``python train.py`` would do, printing into a file."""
    threading.Thread(target=_end_with_the_comparison, daemon=True).start()
    output = os.open(run.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if slot.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = slot.device
    if slot.threads is not None:
        torch.set_num_threads(slot.threads)
    sys.argv = ["train.py", *run.command]
    try:
        entry(run.command)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def _end_with_the_comparison() -> None:
    """A comparison that is killed must not leave runs on the GPUs that it will want again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
