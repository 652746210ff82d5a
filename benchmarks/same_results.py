"""Does a change of the code leave every result as it is? Runs every method of two checkouts and compares them.

git worktree add ../before main
python -m benchmarks.same_results record ../before outputs/before
python -m benchmarks.same_results record . outputs/now
python -m benchmarks.same_results compare outputs/before outputs/now

Each process uses one thread, and no more than two of them run at a time. Scores must be equal to the last bit, and
weights byte by byte, unless --tolerance says otherwise of what is computed from the scores.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

MEASURED_ANEW = (
    "seconds", "peak_memory_gib", "model", "method", "started", "finished", "identity.settings", "identity.versions",
)  # fmt: skip
"""Fields of ``metrics.json`` that differ by nature: the path of the model, and how options are named, are a checkout's.
"""
WITHOUT_VALUES = ("memit", "alphaedit", "rome", "qwen3_tiny_memit")
"""Runs of methods that do not use original values V, which earlier versions optimized nevertheless: what is left of
them (``zero_term``) is listed and not compared."""
RENAMED: dict[Any, str] = {"rounds": "reweighting_iterations"}
"""Fields at any depth of ``metrics.json`` that had another name in earlier versions."""
STATISTICS = ("attacks", "comparisons", "intervals", "verdict")
"""Fields of ``metrics.json`` that may differ a little with ``--tolerance``."""
ROUNDING = 1e-6
"""How much a number of those fields may differ then, unless it is a limit of a confidence interval."""
OTHER_LIMIT = {"low": "high", "high": "low", "0": "1", "1": "0"}
"""How the names of both limits of a confidence interval end."""

TWO_PROCESSES = ["--trainer.devices=2", "--trainer.strategy=ddp"]
ADDED = {"project": ["--data.seed=1"], "resumed": ["--ckpt_path=last"]}
"""Runs whose command is run once more in the same folder, and what is added to it then."""
KILLED = "resumed"
"""The run whose first command is killed."""
NEW_ARGUMENTS: dict[str, list[str]] = {}
"""Arguments of runs that need others where overlays have a section ``method`` in the place of ``closed_form``."""


def runs(checkout: Path) -> dict[str, list[str]]:
    """The arguments of each run, by name; ``ROOT`` stands for the folder of the run."""
    demo, demo_gd, tiny = "--config=configs/demo.yaml", "--config=configs/demo_gd.yaml", "--config=configs/tiny.yaml"
    overlays = [*sorted((checkout / "configs/methods").glob("*.yaml")), checkout / "configs/presets/fast.yaml"]
    found = {path.stem: [demo, f"--config={path.relative_to(checkout)}"] for path in overlays}
    found |= {
        "demo": [demo],
        "demo_gd": [demo_gd],
        "llama31_tiny": ["--config=configs/llama31.yaml", tiny],
        "qwen3_tiny_memit": ["--config=configs/qwen3.yaml", "--config=configs/methods/memit.yaml", tiny],
        "project": [demo, "--data.project=ROOT/project"],
        "resumed": ["--config=configs/llama31.yaml", tiny],
        "demo_two_processes": [demo, *TWO_PROCESSES],
        "demo_gd_two_processes": [demo_gd, *TWO_PROCESSES],
    }
    is_new = "closed_form" not in yaml.safe_load((checkout / "configs/methods/memit.yaml").read_text())
    return found | NEW_ARGUMENTS if is_new else found


def execute(command: list[str], checkout: Path, root: Path, is_killed: bool) -> None:
    """Run ``train.py`` of a checkout, to its end or until its second checkpoint, which follows its first layer.

    Raises:
        RuntimeError: It failed, or came to its end before it could be killed.
    """
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(checkout)}
    checkpoint, written = root / "checkpoints" / "last.ckpt", set[int]()
    with (root / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=checkout, env=os.environ | variables, stdout=log, stderr=log)
        while is_killed and process.poll() is None and len(written) < 2:
            with suppress(FileNotFoundError):
                written.add(checkpoint.stat().st_mtime_ns)
            time.sleep(0.005)
        if is_killed:
            process.kill()
        if process.wait() != (-signal.SIGKILL if is_killed else 0):
            how = f"with exit code {process.returncode}" if process.returncode else "before it could be killed"
            raise RuntimeError(f"it ended {how}: see {log.name}")


def record(checkout: Path, folder: Path, only: list[str]) -> bool:
    """Run everything, or chosen runs, two processes at a time; whether all went well."""

    def run(name: str) -> bool:
        root = folder / name
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        options = [argument.replace("ROOT", str(root)) for argument in found[name]]
        options += [f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false"]
        command = [sys.executable, "train.py", "fit", *options]
        try:
            execute(command, checkout, root, name == KILLED)
            if name in ADDED:
                execute([*command, *ADDED[name]], checkout, root, False)
        except RuntimeError as error:
            print(f"{name}: FAILED, {error}", flush=True)
            return False
        print(f"{name}: done", flush=True)
        return True

    checkout, folder = checkout.resolve(), folder.resolve()
    found = runs(checkout)
    if unknown := set(only) - found.keys():
        sys.exit(f"no such runs: {', '.join(unknown)}")
    alone = [name for name in only or found if TWO_PROCESSES[0] in found[name]]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(run, [name for name in only or found if name not in alone]))
    return all([*done, *map(run, alone)])


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """What must not change in ``metrics.json`` or a part of it, by dotted names."""
    if name in MEASURED_ANEW:
        return {}
    if not isinstance(value, dict | list):
        return {name: value}
    found = dict[str, Any]()
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        found |= leaves(part, f"{name}.{RENAMED.get(key, key)}".removeprefix("."))
    return found


def slack(name: str, found: dict[str, Any], tolerance: float) -> float:
    """How much a number may differ: limits of confidence intervals by a part of the interval's length."""
    if not tolerance or name.partition(".")[0] not in STATISTICS:
        return 0.0
    end = re.split(r"[._]", name)[-1]
    if end not in OTHER_LIMIT or found[name] is None:
        return ROUNDING
    length: float = abs(found[name] - found[name.removesuffix(end) + OTHER_LIMIT[end]])
    return ROUNDING + tolerance * length


def equal(one: Any, other: Any, slack: float) -> bool:
    """Whether two leaves are the same; of sentences, as that of the verdict, the numbers count, and with slack none."""
    if isinstance(one, str) and isinstance(other, str) and " " in one:
        return bool(slack) or sorted(re.findall(r"[\d.]*\d", one)) == sorted(re.findall(r"[\d.]*\d", other))
    if slack and isinstance(one, int | float) and isinstance(other, int | float):
        return abs(one - other) <= slack
    return bool(one == other)


def differences(run: str, before: Path, now: Path, tolerance: float) -> list[str]:
    """What two folders of one run do not have in common."""
    if not (before / "metrics.json").exists() or not (now / "metrics.json").exists():
        return ["NOT RECORDED TWICE"]
    first, second = (leaves(json.loads((folder / "metrics.json").read_text())) for folder in (before, now))
    scores = first.keys() ^ second.keys()
    for name in first.keys() & second.keys():
        if not equal(first[name], second[name], slack(name, first, tolerance)):
            scores.add(name)
    listed = {name for name in scores if "zero_term" in name and run in WITHOUT_VALUES}
    for name in sorted(listed):
        print(f"{run}: {name} {first[name]:.6g} -> {second[name]:.6g}, of values that are not optimized any more")
    scores -= listed
    weights = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}
        for folder in (before, now)
    ]
    shown = [*sorted(scores)[:5], *([f"{len(scores) - 5} more"] if len(scores) > 5 else [])]
    found = [f"other {', '.join(shown)}"] if scores else []
    return found if weights[0] == weights[1] and weights[0] else [*found, "OTHER WEIGHTS"]


def compare(before: Path, now: Path, only: list[str], tolerance: float) -> bool:
    """Print a line for each run; whether all are the same."""
    metrics = [path.relative_to(top) for top in (before, now) for path in top.glob("*/lightning_logs/*/metrics.json")]
    folders = sorted({path.parent for path in metrics if path.parts[0] in only or not only})
    if not folders or set(only) - {folder.parts[0] for folder in folders}:
        sys.exit(f"{before} does not hold these runs: record some first.")
    found = [differences(folder.parts[0], before / folder, now / folder, tolerance) for folder in folders]
    for folder, different in zip(folders, found, strict=True):
        print(f"{folder.parts[0]:24} {folder.name}  {'; '.join(different) or 'equal results; equal weights'}")
    return not any(found)


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("first", type=Path, help="the checkout to record, or the earlier folder of runs")
    parser.add_argument("second", type=Path, help="the folder to record to, or the later folder of runs")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names of runs; all by default")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="how far limits of confidence intervals may be apart, as a part of "
        f"the interval's length; other numbers in {', '.join(STATISTICS)} may then differ by {ROUNDING:g}",
    )
    arguments = parser.parse_args()
    if arguments.action == "record":
        if not record(arguments.first, arguments.second, arguments.only):
            sys.exit("some runs failed")
    elif not compare(arguments.first, arguments.second, arguments.only, arguments.tolerance):
        sys.exit("the results differ")


if __name__ == "__main__":
    main()
