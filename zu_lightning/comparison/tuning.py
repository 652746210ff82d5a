"""Choosing how strongly each method forgets, on draws that are not reported, by one rule for all of them."""

import statistics
from collections.abc import Sequence

from zu_lightning import Results
from zu_lightning.comparison.plan import Grid, Headline, Run

Choice = dict[tuple[str, str, str], float]
"""For a model, a data set, and a method, the strength."""


def score_name(name: str, headline: Headline) -> str:
    """The name in ``metrics.json`` of a score, by exact match or by token accuracy; perplexity has one name only."""
    return name if headline == "exact_match" or name == "perplexity" else f"{name}_token_accuracy"


def balance(results: Results, headline: Headline) -> float:
    """One number for forgetting and keeping: the harmonic mean of five shares, each between 0 and 1.

    They are the shares of efficacy and of generalization that are gone, and of specificity, of the retained facts, and
    of 1 / perplexity that are left. A method that fails at one of them cannot make up for it with the others.
    """
    shares = []
    for name in ("efficacy", "generalization", "specificity", "retain", "perplexity"):
        key = score_name(name, headline)
        before, after = results.before.get(key), results.after.get(key)
        if before is None or after is None or before == 0:
            continue
        left = before / after if name == "perplexity" else after / before
        share = 1 - left if name in ("efficacy", "generalization") else left
        # Written so that NaN, the perplexity of a model that is destroyed, counts as nothing.
        shares.append(min(share, 1.0) if share > 0 else 0.0)
    return statistics.harmonic_mean(shares) if shares else 0.0


def balances(grid: Grid, runs: Sequence[Run]) -> dict[tuple[str, str, str], dict[float, float]]:
    """For each model, data set, and method, each strength with its mean balance over seeds.

    A strength of which a run has failed is left out.
    """
    found: dict[tuple[str, str, str], dict[float, list[float]]] = {}
    failed = set()
    for run in runs:
        cell, strength, results = (run.model, run.data, run.method), run.strength, run.results
        if strength is None:
            continue
        if results is None:
            failed.add((cell, strength))
            continue
        found.setdefault(cell, {}).setdefault(strength, []).append(balance(results, grid.headline[run.data]))
    return {
        cell: {s: statistics.fmean(values) for s, values in by_strength.items() if (cell, s) not in failed}
        for cell, by_strength in found.items()
    }


def chosen_strengths(grid: Grid, runs: Sequence[Run]) -> Choice:
    """The strength with the highest mean balance; the first of equals."""
    found = balances(grid, runs)
    return {cell: max(by_strength, key=by_strength.__getitem__) for cell, by_strength in found.items() if by_strength}
