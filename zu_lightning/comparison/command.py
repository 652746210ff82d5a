r"""Run every method on every model, data set, and seed of a YAML file; what is finished is not run again.

python train.py compare --config configs/protocols/few_shot_demo.yaml --dry-run
python train.py compare --config configs/protocols/few_shot_demo.yaml
python train.py compare --config configs/protocols/table1.yaml --cluster slurm \
    --cluster-options slurm_partition=gpu
"""

import argparse
import importlib.util
import itertools
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pandas
import yaml
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from zu_lightning import InputError, replacing
from zu_lightning.comparison.execution import Entry, run_here, run_on_cluster, slots
from zu_lightning.comparison.figures import draw_downstream, draw_representations, draw_trade_off
from zu_lightning.comparison.plan import Comparison, Strengths
from zu_lightning.comparison.runs import Run
from zu_lightning.comparison.tables import attack_table, latex, markdown, table, tidy, write_tidy
from zu_lightning.comparison.tuning import CELL, chosen_strengths, tuning_scores
from zu_lightning.report.page import write_comparison_page

log = logging.getLogger(__name__)


def main(arguments: list[str], entry: Entry) -> None:
    """Choose strengths, run what is not finished, and write the tables.

    Args:
        arguments: The words after ``python train.py compare``.
        entry: Runs the command line of a run.

    Raises:
        InputError: The plan is malformed, or an option is.
    """
    given = _parser().parse_args(arguments)
    if given.jobs is not None and given.jobs < 1:
        raise InputError("--jobs", given.jobs, "give a positive number.")
    if given.cluster and not importlib.util.find_spec("submitit"):
        raise InputError("--cluster", given.cluster, "this needs submitit: pip install -e '.[comparison]'.")
    folder = given.folder or Path("outputs/comparison", given.config.stem)
    comparison = Comparison.read(given.config, folder, dict(itertools.chain(*given.options)))
    tuning = comparison.tuning_runs()
    if not given.dry_run:
        run_all(comparison, tuning, "Tuning", entry, given)
    scores = tuning_scores(comparison, tidy(tuning)) if tuning else pandas.Series(dtype=float)
    chosen = chosen_strengths(scores)
    runs = comparison.runs(chosen)
    if given.dry_run:
        if tuning:
            show(tuning)
            log.info("strengths are chosen from the runs above; the runs below use them")
        show(runs)
        return
    # A method of which all strengths failed has none to run with.
    runs = [run for run in runs if run.strength is not None or not comparison.methods[run.method].strengths]
    run_all(comparison, runs, "Runs", entry, given)
    if tuning:
        write_tuning(comparison, tidy(tuning), scores, chosen)
    write_results(comparison, runs)
    if missing := sum(run.measured is None for run in (*tuning, *runs)):
        log.error("%d runs failed or did not start: see runs.csv and tuning.csv", missing)
        sys.exit("The same command tries them again.")


def show(runs: Sequence[Run]) -> None:
    """List runs with the command that runs each alone."""
    for run in runs:
        state = run.state if run.state in ("finished", "waiting") else "failed"
        log.info("%-8s  python train.py %s", state, shlex.join(run.command))
    log.info("%d of %d runs are finished", sum(run.measured is not None for run in runs), len(runs))


def run_all(comparison: Comparison, runs: Sequence[Run], name: str, entry: Entry, given: argparse.Namespace) -> None:
    """Run what is not finished."""
    waiting = [run for run in runs if run.measured is None]
    if not waiting:
        return
    log.info("%s: %d of %d are finished", name, len(runs) - len(waiting), len(runs))
    with logging_redirect_tqdm(), tqdm(total=len(waiting), desc=name, unit=" runs") as bar:

        def report(run: Run, error: str) -> None:
            if error:
                log.warning("%s failed: %s (%s)", run.folder, error, run.output)
            bar.update()

        for wave in comparison.waves(waiting):
            if given.cluster:
                options = {name: yaml.safe_load(value) for name, value in itertools.chain(*given.cluster_options)}
                run_on_cluster(wave, entry, comparison.folder / "jobs", {"cluster": given.cluster} | options, report)
            else:
                run_here(wave, entry, slots(given.jobs), report)
            if not any(run.measured for run in wave):
                break  # what all runs of a wave fail at, the others would fail at, too


def write_tuning(comparison: Comparison, frame: pandas.DataFrame, scores: pandas.Series, chosen: Strengths) -> None:
    """Write how strengths were chosen, and draw how forgetting trades off against keeping."""
    write_tidy(frame, comparison.folder / "tuning.csv")
    lines = [["Model", "Data", "Method", "Option", "Tuning score at each strength"]]
    for cell, found in scores.groupby(CELL):
        texts = (f"{strength:g}: {score:.3f}" for (*_, strength), score in found.items())
        marked = (f"**{text}**" if text.startswith(f"{chosen[cell]:g}:") else text for text in texts)
        lines.append([*cell, f"`{comparison.methods[cell[2]].strength}`", ", ".join(marked)])
    _write(comparison.folder / "strengths.md", markdown(lines))
    for model in comparison.models:
        for data in comparison.data:
            draw_trade_off(comparison, frame, model, data)


def write_results(comparison: Comparison, runs: Sequence[Run]) -> None:
    """Write all tables and figures of the runs that are reported."""
    frame, folder = tidy(runs), comparison.folder
    write_tidy(frame, folder / "runs.csv")
    pairs = {f"{model}, {data}": (model, data) for model in comparison.models for data in comparison.data}
    tables = {name: table(comparison, frame, *pair) for name, pair in pairs.items()}
    attacked = {name: lines for name, pair in pairs.items() if (lines := attack_table(comparison, frame, *pair))}
    _write(folder / "tables.md", "\n\n".join(f"## {name}\n\n{markdown(lines)}" for name, lines in tables.items()))
    _write(folder / "tables.tex", "\n\n".join(f"% {name}\n{latex(lines)}" for name, lines in tables.items()))
    if attacked:
        text = "\n\n".join(f"## {name}\n\n{markdown(lines)}" for name, lines in attacked.items())
        _write(folder / "attacks.md", text)
    for pair in pairs.values():
        draw_downstream(runs, *pair, folder)
        draw_representations(comparison, runs, *pair)
    tables |= {f"{name}: recovered by attacks (%)": lines for name, lines in attacked.items()}
    done = sum(frame.state == "finished")
    page = write_comparison_page(folder, f"Comparison of methods: {folder.name}", tables, (done, len(runs)))
    log.info("the report: %s", page)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


class _Parser(argparse.ArgumentParser):
    """Reports an error in one line, as the other commands do."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"train.py: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="train.py compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    many: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "NAME=VALUE", "type": _names_and_values}
    add = parser.add_argument
    add("--config", type=Path, required=True, help="file that names methods, models, data, and seeds")
    add("--folder", type=Path, help="where runs and tables are written (default: outputs/comparison/NAME)")
    add("--options", help="options of all runs, as for train.py", **many)
    add("--dry-run", action="store_true", help="list the runs, and whether they are finished")
    add("--jobs", type=int, help="number of runs at a time (default: one per GPU, or one)")
    add("--cluster", choices=("slurm", "local"), help="submit to a cluster, or try that here")
    add("--cluster-options", help="parameters of submitit, such as slurm_partition=gpu", **many)
    return parser


def _names_and_values(text: str) -> list[tuple[str, str]]:
    """Options as ``NAME=VALUE``, or several of them as ``[NAME=VALUE, NAME=VALUE]``."""
    texts = yaml.safe_load(text) if text.startswith("[") else [text]
    pairs = [str(one).partition("=") for one in texts]
    if not all(sign for _, sign, _ in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} has no value: write NAME=VALUE")
    return [(name, value) for name, _, value in pairs]
