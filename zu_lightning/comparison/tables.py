"""Results of a comparison: one tidy table, and the tables that papers print, in Markdown and LaTeX."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import neg
from pathlib import Path

import pandas

from zu_lightning import Results, replacing
from zu_lightning.comparison.plan import Comparison
from zu_lightning.comparison.runs import NAMES, Run
from zu_lightning.comparison.tuning import score_name
from zu_lightning.evaluation.score_table import SCORE

COLUMNS = ("efficacy", "generalization", "specificity", "retain", "leak_nats", "perplexity")
"""Scores that papers print, and the leak, which they do not."""
DISTANCE: Mapping[str, Callable[[float], float]] = {"low": float, "high": neg, "zero": abs}
"""By when a score is good, what its best value has least of."""
TOO_LARGE = 1000.0
"""A perplexity above this is shown as ``> 1000``."""
EXACT = "exact match"
"""The name in a row of the efficacy by exact match, whatever the headline is."""
FORGETS = 0.5
"""A method forgets if its efficacy by exact match is at most this share of that before. The best of those that forget,
and do not destroy the model, is in bold."""
BASE, GOLD = "Base", "Gold"
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
}
"""Columns of a table of attacks, with their heads."""
GAP = "mean_gap"
PUBLISHED = Path(__file__).with_name("published.csv")
"""Tables 1, 2, and F.1 to F.4 of arXiv 2605.18879."""


@dataclass(frozen=True)
class Cell:
    """A score of a method over seeds; ``spread`` is the sample standard deviation, ``None`` for a single seed."""

    mean: float
    spread: float | None = None

    @classmethod
    def of(cls, values: pandas.Series) -> "Cell":
        """Of the scores of all seeds; without a spread if one of them is not finite."""
        mean = float(values.mean())
        return cls(mean, float(values.std()) if len(values) > 1 and math.isfinite(mean) else None)

    def text(self, score: str) -> str:
        """As papers print it: ``mean ± sd``."""
        if score == "perplexity" and self.mean > TOO_LARGE:
            return "> 1000"
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


Row = dict[str, Cell]
"""Cells of a method by score."""
Rows = dict[str, Row]
"""Rows of a table by method."""


def tidy(runs: Sequence[Run]) -> pandas.DataFrame:
    """One row for each run, finished or not: which it is, how it failed, every score, also of attacks, and seconds."""
    return pandas.DataFrame([{name: getattr(run, name) for name in NAMES} | _measurements(run) for run in runs])


def _measurements(run: Run) -> dict[str, object]:
    state: dict[str, object] = {"state": run.state}
    if run.measured is None:
        return state
    results = Results.read(run.measured)
    columns = {f"{score}_before": value for score, value in results.before.items()} | results.after
    columns |= {f"seconds_{phase}": value for phase, value in results.seconds.items()}
    for suffix, model in (("_before", "base"), ("", "edited"), ("_gold", "gold")):
        columns |= {f"attack_{name}{suffix}": of[model] for name, of in results.attacks.items() if model in of}
    return state | columns | results.comparisons | {"peak_memory_gib": results.peak_memory_gib}


def write_tidy(frame: pandas.DataFrame, path: Path) -> None:
    """Write a tidy table as CSV, and as Parquet beside it."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)
    with replacing(path.with_suffix(".parquet")) as temporary:
        frame.to_parquet(temporary, index=False)


def of_pair(frame: pandas.DataFrame, model: str, data: str) -> pandas.DataFrame:
    """The finished runs of a model on a data set; a perplexity that is NaN, of a destroyed model, is infinite."""
    found = frame[(frame.model == model) & (frame.data == data) & (frame.state == "finished")]
    return found.assign(perplexity=found.perplexity.fillna(float("inf"))) if "perplexity" in found else found


def rows_of(comparison: Comparison, frame: pandas.DataFrame, model: str, data: str) -> Rows:
    """The rows of a model's table on a data set, over the seeds that are finished: ``Base``, then each method."""
    finished = of_pair(frame, model, data)
    names = {score: score_name(score, comparison.headline[data]) for score in COLUMNS} | {EXACT: "efficacy"}
    base = finished.drop_duplicates("seed")  # a draw's base model is the same for all methods
    rows = {BASE: _row(base, {score: f"{name}_before" for score, name in names.items()})}
    return rows | {str(method): _row(runs, names) for method, runs in finished.groupby("method")}


def _row(frame: pandas.DataFrame, columns: Mapping[str, str], scale: float = 1.0) -> Row:
    values = {score: scale * frame[name].dropna() for score, name in columns.items() if name in frame}
    return {score: Cell.of(found) for score, found in values.items() if len(found)}


def best(rows: Rows) -> set[tuple[str, str]]:
    """Method and score of the best of those that forget and do not destroy the model; ties are all best."""
    base = rows[BASE]
    candidates = {method: row for method, row in rows.items() if method != BASE and _competes(row, base)}
    winners = set()
    for score in COLUMNS:
        values = {method: round(row[score].mean, 2) for method, row in candidates.items() if score in row}
        if values:
            far = {method: DISTANCE[SCORE[score].good_when](value) for method, value in values.items()}
            winners |= {(method, score) for method, distance in far.items() if distance == min(far.values())}
    return winners


def _competes(row: Row, base: Row) -> bool:
    destroyed = "perplexity" in row and row["perplexity"].mean > TOO_LARGE
    return EXACT in row and not destroyed and row[EXACT].mean <= FORGETS * base[EXACT].mean


def published_rows(comparison: Comparison, model: str, data: str) -> Rows:
    """What the paper prints for a model of this name under this comparison's protocol; empty for other models.

    Its perplexities are left out: they are of other text than ours.
    """
    cells = pandas.read_csv(PUBLISHED)
    wanted = (cells.protocol == comparison.protocol) & (cells.model == model) & (cells.data == data)
    return {
        str(method): {one.score: Cell(one.mean, None if pandas.isna(one.sd) else one.sd) for one in found.itertuples()}
        for method, found in cells[wanted & (cells.score != "perplexity")].groupby("method")
    }


def table(comparison: Comparison, frame: pandas.DataFrame, model: str, data: str) -> list[list[str]]:
    """The table of a model and a data set: a line of heads, then a line per method; the best is between asterisks."""
    rows, published = rows_of(comparison, frame, model, data), published_rows(comparison, model, data)
    winners = best(rows)
    scores = [score for score in COLUMNS if any(score in row for row in rows.values())]
    lines = [["Method", *(SCORE[score].head for score in scores)]]
    for method in (BASE, *comparison.methods):
        row = rows.get(method, {})
        texts = [row[score].text(score) if score in row else "failed" for score in scores]
        marked = [f"**{t}**" if (method, score) in winners else t for score, t in zip(scores, texts, strict=True)]
        lines.append([method + _share_of_seeds(frame, model, data, method), *marked])
        if theirs := published.get(method):
            cells = [theirs[score].text(score) if score in theirs else "" for score in scores]
            lines.append([f"{method} (published)", *cells])
    return lines


def attack_table(comparison: Comparison, frame: pandas.DataFrame, model: str, data: str) -> list[list[str]]:
    """What attacks recovered on a model and a data set, in percent: a line of heads, then base, gold, and each method.

    Without attacks there are no lines.
    """
    finished = of_pair(frame, model, data)
    draws = finished.drop_duplicates("seed")  # base and gold are those of the draw
    edited = {name: f"attack_{name}" for name in ATTACKS} | {GAP: GAP}
    rows = {name: _row(draws, {score: f"attack_{score}{suffix}" for score in ATTACKS}, 100)
            for name, suffix in ((BASE, "_before"), (GOLD, "_gold"))}  # fmt: skip
    rows |= {str(method): _row(runs, edited, 100) for method, runs in finished.groupby("method")}
    columns = [score for score in edited if any(score in row for row in rows.values())]
    lines = [["Method", *(ATTACKS.get(score, "Mean gap") for score in columns)]]
    for name, row in ((name, rows.get(name)) for name in (BASE, GOLD, *comparison.methods)):
        if row:
            missing = _share_of_seeds(frame, model, data, name)
            lines.append([name + missing, *(row[score].text(score) if score in row else "" for score in columns)])
    return lines if len(lines) > 1 else []


def _share_of_seeds(frame: pandas.DataFrame, model: str, data: str, method: str) -> str:
    """Says so if a mean is not over all seeds."""
    states = frame.state[(frame.model == model) & (frame.data == data) & (frame.method == method)]
    done = (states == "finished").sum()
    return f" ({done} of {len(states)} runs)" if done < len(states) else ""


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    head, *rest = lines
    rule = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join([f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(line)} |" for line in rest)])


def latex(lines: Iterable[Iterable[str]]) -> str:
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
