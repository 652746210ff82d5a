"""What a grid found: one tidy table, and the form of it that papers print, in Markdown and LaTeX."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from zu_lightning import replacing
from zu_lightning.comparison.plan import NAMES, Grid, Run
from zu_lightning.comparison.tuning import score_name
from zu_lightning.evaluation.score_table import SCORE

COLUMNS = ("efficacy", "generalization", "specificity", "retain", "perplexity")
"""Scores that papers print."""
TOO_LARGE = 1000.0
"""A perplexity above this is shown as ``> 1000``."""
EXACT = "exact match"
"""The name in a row of the efficacy by exact match, whatever the headline is."""
FORGETS = 0.5
"""A method forgets if its efficacy by exact match is at most this share of that before. The best of those that forget,
and do not destroy the model, is in bold."""
BASE, GOLD = "Base", "Gold"
GAP = "mean_gap"
ATTACKS = {
    "rank_first": "First",
    "rank_first_paraphrases": "First, paraphrases",
    "rank": "Rank",
    "leak": "Leak",
    "prompting_few_shot": "Few-shot",
    "prompting_prefix": "Prefix",
    "lens": "Lens",
    "sampling": "Samples",
    "quantization_nf4_merged": "4 bits",
    "relearning_30x0.0001": "Relearning, 30",
    "relearning_100x0.0003": "Relearning, 100",
    GAP: "Mean gap",
}
"""Columns of a table of attacks, with their heads."""
PUBLISHED = Path(__file__).with_name("published.csv")
"""Tables 1, 2, and F.1 to F.4 of arXiv 2605.18879."""


@dataclass(frozen=True)
class Cell:
    """A score of a method over seeds; ``spread`` is the sample standard deviation, ``None`` for a single seed."""

    mean: float
    spread: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell":
        """Of the scores of all seeds; without a spread if one of them is not finite."""
        mean = statistics.fmean(values)
        return cls(mean, statistics.stdev(values) if len(values) > 1 and math.isfinite(mean) else None)

    @property
    def is_too_large(self) -> bool:
        """Whether this is the perplexity of a model that is destroyed, which may be NaN."""
        return not self.mean <= TOO_LARGE

    def text(self, score: str) -> str:
        """As papers print it: ``mean ± sd``."""
        if score == "perplexity" and self.is_too_large:
            return "> 1000"
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


Row = dict[str, Cell]
"""Cells of a method by score."""


def write_tidy(runs: Sequence[Run], path: Path) -> None:
    """One row for each run, finished or not: which it is, how it failed, every score, also of attacks, and seconds.

    Args:
        runs: All runs.
        path: CSV to write; the same is written as Parquet beside it.
    """
    rows = []
    for run in runs:
        row: dict[str, object] = {name: getattr(run, name) for name in NAMES}
        results = run.results
        row["state"] = "finished" if results else run.error or "waiting"
        if results:
            row |= {f"{score}_before": value for score, value in results.before.items()}
            row |= dict(results.after) | {f"seconds_{phase}": value for phase, value in results.seconds.items()}
            row |= {f"attack_{name}_before": found["base"] for name, found in results.attacks.items()}
            row |= {f"attack_{name}": found["edited"] for name, found in results.attacks.items()}
            row |= {f"attack_{name}_gold": found["gold"] for name, found in results.attacks.items() if "gold" in found}
            row |= results.comparisons
            row["peak_memory_gib"] = results.peak_memory_gib
        rows.append(row)
    table = pandas.DataFrame(rows)
    with replacing(path) as temporary:
        table.to_csv(temporary, index=False)
    with replacing(path.with_suffix(".parquet")) as temporary:
        table.to_parquet(temporary, index=False)


def rows_of(grid: Grid, runs: Sequence[Run], model: str, data: str) -> dict[str, Row]:
    """The rows of a model's table on a data set, over the seeds that are finished: ``Base``, then each method."""
    names = {score: score_name(score, grid.headline[data]) for score in COLUMNS} | {EXACT: "efficacy"}
    after: dict[str, list[Mapping[str, float]]] = {}
    before: dict[int, Mapping[str, float]] = {}  # a draw's base model is the same for all methods
    for run in runs:
        if (run.model, run.data) == (model, data) and (results := run.results):
            after.setdefault(run.method, []).append(results.after)
            before.setdefault(run.seed, results.before)
    rows = {BASE: list(before.values()), **after}
    return {method: _row(scores, names) for method, scores in rows.items()}


def _row(of_seeds: Sequence[Mapping[str, float]], names: Mapping[str, str]) -> Row:
    values = {score: [scores[name] for scores in of_seeds if name in scores] for score, name in names.items()}
    return {score: Cell.of(found) for score, found in values.items() if found}


def best(rows: Mapping[str, Row]) -> set[tuple[str, str]]:
    """Method and score of the best of those that forget and do not destroy the model; ties are all best."""
    base = rows.get(BASE, {})
    candidates = {method: row for method, row in rows.items() if method != BASE and _competes(row, base)}
    winners = set()
    for score in COLUMNS:
        values = {method: round(row[score].mean, 2) for method, row in candidates.items() if score in row}
        if values:
            target = min(values.values()) if SCORE[score].good_when == "low" else max(values.values())
            winners |= {(method, score) for method, value in values.items() if value == target}
    return winners


def _competes(row: Row, base: Row) -> bool:
    destroyed = "perplexity" in row and row["perplexity"].is_too_large
    return EXACT in row and not destroyed and row[EXACT].mean <= FORGETS * base[EXACT].mean


def published_rows(grid: Grid, model: str, data: str) -> dict[str, Row]:
    """What the paper prints for a model of this name under this grid's protocol; empty for other models.

    Its perplexities are left out: they are of other text than ours.
    """
    rows: dict[str, Row] = {}
    with PUBLISHED.open(encoding="utf-8") as file:
        for line in csv.DictReader(file):
            wanted = (line["protocol"], line["model"], line["data"]) == (grid.protocol, model, data)
            if wanted and line["score"] != "perplexity":
                cell = Cell(float(line["mean"]), float(line["sd"]) if line["sd"] else None)
                rows.setdefault(line["method"], {})[line["score"]] = cell
    return rows


def table(grid: Grid, runs: Sequence[Run], model: str, data: str) -> list[list[str]]:
    """The table of a model and a data set: a line of heads, then a line per method; the best is between asterisks."""
    rows, published = rows_of(grid, runs, model, data), published_rows(grid, model, data)
    winners = best(rows)
    scores = [score for score in COLUMNS if any(score in row for row in rows.values())]
    lines = [["Method", *(SCORE[score].head for score in scores)]]
    for method in (BASE, *grid.methods):
        row = rows.get(method, {})
        texts = [row[score].text(score) if score in row else "failed" for score in scores]
        marked = [f"**{t}**" if (method, score) in winners else t for score, t in zip(scores, texts, strict=True)]
        lines.append([method + _share_of_seeds(runs, model, data, method), *marked])
        if theirs := published.get(method):
            cells = [theirs[score].text(score) if score in theirs else "" for score in scores]
            lines.append([f"{method} (published)", *cells])
    return lines


def attack_table(grid: Grid, runs: Sequence[Run], model: str, data: str) -> list[list[str]]:
    """What attacks found on a model and a data set, in percent: a line of heads, then base, gold, and each method.

    Without attacks there are no lines.
    """
    found: dict[str, dict[int, dict[str, float]]] = {BASE: {}, GOLD: {}}  # base and gold are those of the draw
    for run in runs:
        if (run.model, run.data) == (model, data) and (results := run.results) and results.attacks:
            for name, kind in ((BASE, "base"), (GOLD, "gold"), (run.method, "edited")):
                if scores := {score: 100 * of[kind] for score, of in results.attacks.items() if kind in of}:
                    found.setdefault(name, {})[run.seed] = scores
            if GAP in results.comparisons:
                found[run.method][run.seed][GAP] = 100 * results.comparisons[GAP]
    rows = {name: _row([*of_seeds.values()], {score: score for score in ATTACKS}) for name, of_seeds in found.items()}
    columns = [score for score in ATTACKS if any(score in row for row in rows.values())]
    lines = [["Method", *(ATTACKS[score] for score in columns)]]
    for name in (BASE, GOLD, *grid.methods):
        if row := rows.get(name):
            missing = _share_of_seeds(runs, model, data, name) if name in grid.methods else ""
            lines.append([name + missing, *(row[score].text(score) if score in row else "" for score in columns)])
    return lines if len(lines) > 1 else []


def _share_of_seeds(runs: Sequence[Run], model: str, data: str, method: str) -> str:
    """Says so if a mean is not over all seeds."""
    of_cell = [run for run in runs if (run.model, run.data, run.method) == (model, data, method)]
    done = sum(run.results is not None for run in of_cell)
    return f" ({done} of {len(of_cell)} runs)" if done < len(of_cell) else ""


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *rest = lines
    rule = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in rest)])


def latex(lines: Sequence[Sequence[str]]) -> str:
    """A table in LaTeX, with booktabs."""
    head, *rest = ([_latex(cell) for cell in line] for line in lines)
    body = [" & ".join(line) + r" \\" for line in rest]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    return "\n".join(
        [begin, r"\toprule", " & ".join(head) + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]
    )


def _latex(cell: str) -> str:
    if cell.startswith("**"):
        return rf"\textbf{{{_latex(cell.strip('*'))}}}"
    for character, command in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#"), ("±", r"$\pm$"), (">", "$>$")):
        cell = cell.replace(character, command)
    return cell
