r"""Every method on every model, data set, and seed of a YAML file; what is finished is not run again.

python train.py compare --config configs/protocols/few_shot_demo.yaml --dry-run
python train.py compare --config configs/protocols/few_shot_demo.yaml
python train.py compare --config configs/protocols/table1.yaml --cluster slurm \
    --cluster-options slurm_partition=gpu
"""

import argparse
import importlib.util
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from zu_lightning import InputError, replacing
from zu_lightning.comparison.execution import Entry, run_here, run_on_cluster, slots
from zu_lightning.comparison.figures import draw_downstream, draw_frontier, draw_representations
from zu_lightning.comparison.plan import Grid, Run
from zu_lightning.comparison.tables import attack_table, latex, markdown, table, write_tidy
from zu_lightning.comparison.tuning import Choice, balances, chosen_strengths
from zu_lightning.report.page import write_grid_page

log = logging.getLogger(__name__)


def main(arguments: list[str], entry: Entry) -> None:
    """Choose strengths, run what is not finished, and write the tables.

    Args:
        arguments: The words after ``python train.py compare``.
        entry: Carries out the command line of a run.

    Raises:
        InputError: The grid is malformed, or an option is.
    """
    given = _parser().parse_args(arguments)
    if given.jobs is not None and given.jobs < 1:
        raise InputError("jobs", given.jobs, "give a positive number.")
    if given.cluster and not importlib.util.find_spec("submitit"):
        raise InputError("cluster", given.cluster, "this needs submitit: pip install -e '.[grid]'.")
    folder = given.folder or Path("outputs/grid", given.config.stem)
    grid = Grid.read(given.config, folder, named_values(given.options))
    tuning = grid.tuning_runs()
    if given.dry_run:
        if tuning:
            show(tuning)
            log.info("strengths are chosen from the runs above, and the runs below are given them")
        show(grid.runs(chosen_strengths(grid, tuning)))
        return
    run_all(grid, tuning, "Tuning", entry, given)
    chosen = chosen_strengths(grid, tuning)
    # A method of which all strengths failed has none to run with.
    runs = [run for run in grid.runs(chosen) if run.strength is not None or not grid.methods[run.method].strengths]
    run_all(grid, runs, "Runs", entry, given)
    write_all(grid, tuning, runs, chosen)
    missing = [run for run in (*tuning, *runs) if run.results is None]
    if missing:
        log.error("%d runs failed or did not start: see runs.csv and tuning.csv", len(missing))
        sys.exit("The same command tries them again.")


def show(runs: Sequence[Run]) -> None:
    """List runs with the command that runs each alone."""
    for run in runs:
        state = "finished" if run.results else "failed" if run.error else "waiting"
        log.info("%-8s  python train.py %s", state, shlex.join(run.command))
    log.info("%d of %d runs are finished", sum(run.results is not None for run in runs), len(runs))


def run_all(grid: Grid, runs: Sequence[Run], name: str, entry: Entry, given: argparse.Namespace) -> None:
    """Run what is not finished."""
    waiting = [run for run in runs if run.results is None]
    if not waiting:
        return
    log.info("%s: %d of %d are finished", name, len(runs) - len(waiting), len(runs))
    with logging_redirect_tqdm(), tqdm(total=len(waiting), desc=name, unit=" runs") as bar:

        def report(run: Run, error: str) -> None:
            if error:
                log.warning("%s failed: %s (%s)", run.name, error, run.output)
            bar.update()

        for wave in grid.waves(waiting):
            if given.cluster:
                options = {name: yaml.safe_load(value) for name, value in named_values(given.cluster_options).items()}
                run_on_cluster(wave, entry, grid.folder / "jobs", {"cluster": given.cluster} | options, report)
            else:
                run_here(wave, entry, slots(given.jobs), report)
            if not any(run.results for run in wave):
                break  # what all runs of a wave fail at, the others would fail at, too


def named_values(words: Sequence[str]) -> dict[str, str]:
    """What words such as ``a=1`` say."""
    return dict(word.split("=", 1) for word in words)


def write_all(grid: Grid, tuning: Sequence[Run], runs: Sequence[Run], chosen: Choice) -> None:
    """All tables and figures of a grid, in its folder."""
    write_tidy(runs, grid.folder / "runs.csv")
    if tuning:
        write_tidy(tuning, grid.folder / "tuning.csv")
        _write(grid.folder / "strengths.md", markdown(_strengths(grid, tuning, chosen)))
    pairs = [(model, data) for model in grid.models for data in grid.data]
    tables = {f"{model}, {data}": table(grid, runs, model, data) for model, data in pairs}
    _write(grid.folder / "tables.md", "\n\n".join(f"## {n}\n\n{markdown(lines)}" for n, lines in tables.items()))
    _write(grid.folder / "tables.tex", "\n\n".join(f"% {n}\n{latex(lines)}" for n, lines in tables.items()))
    attacked = {f"{model}, {data}": attack_table(grid, runs, model, data) for model, data in pairs}
    if any(attacked.values()):
        found = (f"## {name}\n\n{markdown(lines)}" for name, lines in attacked.items() if lines)
        _write(grid.folder / "attacks.md", "\n\n".join(found))
    for model, data in pairs:
        draw_downstream(runs, model, data, grid.folder)
        if tuning:
            draw_frontier(grid, tuning, model, data)
        draw_representations(grid, runs, model, data)
    shown = tables | {f"{name}: what attacks find (%)": lines for name, lines in attacked.items() if lines}
    done = sum(run.results is not None for run in runs)
    page = write_grid_page(grid.folder, f"Comparison of methods: {grid.folder.name}", shown, (done, len(runs)))
    log.info("the report: %s", page)


def _strengths(grid: Grid, tuning: Sequence[Run], chosen: Choice) -> list[list[str]]:
    lines = [["Model", "Data", "Method", "Option", "Balance at each strength"]]
    for (model, data, method), by_strength in balances(grid, tuning).items():
        texts = (f"{s:g}: {b:.3f}" for s, b in sorted(by_strength.items()))
        best = chosen.get((model, data, method))
        marked = (f"**{t}**" if best is not None and t.startswith(f"{best:g}:") else t for t in texts)
        lines.append([model, data, method, f"`{grid.methods[method].strength}`", ", ".join(marked)])
    return lines


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train.py compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="file that names methods, models, data, and seeds")
    parser.add_argument("--folder", type=Path, help="where runs and tables are written (default: outputs/grid/NAME)")
    many: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "NAME=VALUE", "type": _named_value}
    parser.add_argument("--options", help="options of all runs, as for train.py", **many)
    parser.add_argument("--dry-run", action="store_true", help="list the runs, and whether they are finished")
    parser.add_argument("--jobs", type=int, help="number of runs at a time (default: one per GPU, or one)")
    parser.add_argument("--cluster", choices=("slurm", "local"), help="submit to a cluster, or try that here")
    parser.add_argument("--cluster-options", help="parameters of submitit, such as slurm_partition=gpu", **many)
    return parser


def _named_value(text: str) -> str:
    if "=" not in text:
        raise argparse.ArgumentTypeError(f"{text!r} has no value: write NAME=VALUE")
    return text
