"""Choosing how strongly each method forgets, on draws that are not reported, by one criterion for all of them."""

import pandas

from zu_lightning.comparison.plan import Comparison, Headline, Strengths
from zu_lightning.evaluation.score_table import SCORE

CELL = ["model", "data", "method"]


def score_name(name: str, headline: Headline) -> str:
    """The name in ``metrics.json`` of a score, by exact match or, if it is in percent, by token accuracy."""
    return name if headline == "exact_match" or SCORE[name].unit != "percent" else f"{name}_token_accuracy"


def tuning_score(frame: pandas.DataFrame, headline: Headline) -> pandas.Series:
    """One number from 0 to 1 for forgetting and keeping: the harmonic mean of five shares.

    They are the shares of efficacy and of generalization that are gone, and of specificity, of the retained facts, and
    of 1 / perplexity that are left. A method that fails at one of them cannot make up for it with the others.

    Args:
        frame: A row for each finished run, as in ``runs.csv``.
        headline: Which scores count.
    """
    shares = pandas.DataFrame(index=frame.index)
    for name in ("efficacy", "generalization", "specificity", "retain", "perplexity"):
        key = score_name(name, headline)
        if key in frame:
            before, after = frame[f"{key}_before"], frame[key]
            left = before / after if name == "perplexity" else after / before
            share = 1 - left if SCORE[name].concerns == "forget" else left
            # NaN, the perplexity of a model that is destroyed, counts as nothing left.
            shares[name] = share.fillna(0).clip(0, 1).where(before > 0)
    score: pandas.Series = 1 / (1 / shares).mean(axis=1)
    return score.fillna(0)


def tuning_scores(comparison: Comparison, frame: pandas.DataFrame) -> pandas.Series:
    """Mean score over seeds by model, data set, method, and strength; a strength of which a run has failed is left out.

    Args:
        comparison: The comparison.
        frame: A row for each run of the tuning, as in ``tuning.csv``.
    """
    scores = [
        tuning_score(rows[rows.state == "finished"], comparison.headline[str(data)])
        for data, rows in frame.groupby("data")
    ]
    groups = frame.assign(score=pandas.concat([pandas.Series(dtype=float), *scores])).groupby([*CELL, "strength"])
    means: pandas.Series = groups.score.mean()[groups.state.agg(lambda states: (states == "finished").all())]
    return means


def chosen_strengths(scores: pandas.Series) -> Strengths:
    """The strength with the highest mean score; the smallest of equals."""
    return {cell[:3]: cell[3] for cell in scores.groupby(CELL).idxmax()} if len(scores) else {}
