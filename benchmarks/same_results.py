"""Does a change of the code leave every result as it is? Runs every method of two checkouts and compares them.

git worktree add ../before main
python -m benchmarks.same_results record ../before outputs/before
python -m benchmarks.same_results record . outputs/now
python -m benchmarks.same_results compare outputs/before outputs/now

Each run uses one thread. Scores must be equal to the last bit, and edited weights byte by byte.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

MEASURED_ANEW = {"seconds", "peak_memory_gib", "model"}
"""What differs from run to run; the path of the model may differ between checkouts."""
RENAMED = {"rule": "method"}
"""Fields of ``metrics.json`` that had another name in earlier versions."""
RENAMED_RUNS = {"paper_weights": "release_weights", "gradient_descent_paper": "gradient_descent_release"}
"""Configurations that had another name in earlier versions."""


def commands(checkout: Path) -> dict[str, list[str]]:
    """The configurations of each run, by name: both demos, every method on the demo, and tiny models."""
    found = {"demo": ["configs/demo.yaml"], "demo_gd": ["configs/demo_gd.yaml"]}
    for path in sorted((checkout / "configs").rglob("*.yaml")):
        sections = yaml.safe_load(path.read_text())
        if path.parent.name != "protocols" and "closed_form" in sections and "path" not in sections.get("data", {}):
            found[RENAMED_RUNS.get(path.stem, path.stem)] = ["configs/demo.yaml", str(path.relative_to(checkout))]
    found["llama31_tiny"] = ["configs/llama31.yaml", "configs/tiny.yaml"]
    found["qwen3_tiny_memit"] = ["configs/qwen3.yaml", *found["memit"][1:], "configs/tiny.yaml"]
    return found


def record(checkout: Path, folder: Path) -> None:
    """Run everything, two runs at a time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(name: str, configs: list[str]) -> None:
        options = [f"--config={config}" for config in configs]
        root = f"--trainer.default_root_dir={(folder / name).resolve()}"
        command = [sys.executable, "train.py", "fit", *options, root, "--trainer.enable_progress_bar=false"]
        subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
        print(f"{name}: done", flush=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, *zip(*commands(checkout).items(), strict=True)))


def results(folder: Path) -> dict[str, Any]:
    """What must not change in ``metrics.json``."""
    content = json.loads((folder / "metrics.json").read_text())
    renamed = {RENAMED.get(name, name): value for name, value in content.items()}
    return {name: value for name, value in renamed.items() if name not in MEASURED_ANEW}


def compare(before: Path, now: Path) -> bool:
    """Print a line for each run; whether all are the same."""
    runs = sorted(before.glob("*/lightning_logs/version_0/metrics.json"))
    if not runs:
        sys.exit(f"{before} holds no runs: record some first.")
    same = True
    for metrics in runs:
        run = metrics.parent.relative_to(before)
        first, second = results(before / run), results(now / run)
        weights = [(folder / run / "model" / "model.safetensors").read_bytes() for folder in (before, now)]
        differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
        verdicts = [f"other {', '.join(differing)}" if differing else "equal results"]
        verdicts.append("equal weights" if weights[0] == weights[1] else "OTHER WEIGHTS")
        same = same and not differing and weights[0] == weights[1]
        print(f"{run.parts[0]:24} {'; '.join(verdicts)}")
    return same


def main() -> None:
    """Record or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "compare"])
    parser.add_argument("first", type=Path, help="the checkout to record, or the earlier folder of runs")
    parser.add_argument("second", type=Path, help="the folder to record to, or the later folder of runs")
    arguments = parser.parse_args()
    if arguments.action == "record":
        record(arguments.first, arguments.second)
    elif not compare(arguments.first, arguments.second):
        sys.exit("the results differ")


if __name__ == "__main__":
    main()
