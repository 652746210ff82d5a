r"""How much sooner the same is forgotten: scores and seconds of the published procedure and of ours, in one run.

python -m benchmarks.speed.equal_forgetting --forget 200 --sample 20
python -m benchmarks.speed.equal_forgetting --forget 50 --options model.model_name_or_path=MODEL model.layers=[1,2] \
    data.path=FACTS data.ids_file=IDS data.corpus=CORPUS data.heldout=HELDOUT

The published procedure is timed on ``--sample`` facts and scaled up. Its scores are those of "equal steps", which has
the same targets up to rounding (``benchmarks.speed.published`` says how far apart).
"""

import argparse
import math
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, get_loader
from lightning import LightningDataModule, LightningModule
from tqdm.auto import tqdm

from benchmarks.console import new_parser, table_head, table_row
from benchmarks.speed.sides import measured
from zu_lightning import (
    EditableLM,
    EditingModule,
    Method,
    evaluate,
    evaluation_batches,
    export_adapter,
    export_model,
    unlearn,
)
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.rank import Rank
from zu_lightning.runtime.timing import Monitor

PUBLISHED = "published procedure"
EQUAL = "ours, equal steps"
FAST = ["--config=configs/methods/erase.yaml", "--config=configs/presets/fast.yaml"]
WAYS = {
    EQUAL: ["--config=configs/methods/zero_unlearn.yaml", "--release.kl_position=lookup"],
    "the default": ["--config=configs/methods/erase.yaml"],
    "fast": FAST,
    "fast, milder": [*FAST, "--method.retain_weight=0.8"],
    "fast, mildest, less text": [
        *FAST,
        "--method.retain_weight=3.2",
        "--data.reading.corpus_tokens=30000",
    ],
}
"""Our ways, and how the command line names them."""
BETTER = {"efficacy": -1, "generalization": -1, "specificity": 1, "retain": 1}
"""Scores, and whether more of them is better."""
KNOWN = ("rank_first", "rank_first_paraphrases")
"""How many answers are only covered: the truth still ranks first among its relation's answers."""
ATTACKED = 30
"""Maximum number of facts that are asked for that, outside of the time that is measured."""

Scores = dict[str, float]


@dataclass(frozen=True)
class Job:
    """What the command line describes: a module with its method, and its data."""

    module: EditingModule
    data: Any

    @classmethod
    def described(cls, words: list[str]) -> "Job":
        """What ``train.py fit`` would make of some words."""
        command = [sys.executable, "train.py", "fit", *words, "--print_config"]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        config = get_loader("yaml")(text)
        parser = ArgumentParser()
        parser.add_subclass_arguments(Method, "method")
        parser.add_subclass_arguments(LightningModule, "model")
        parser.add_subclass_arguments(LightningDataModule, "data")
        parser.link_arguments("method", "model.init_args.method", apply_on="instantiate")
        if config["release"]:
            config["method"]["init_args"]["release"] = config["release"]
        made = parser.instantiate(parser.parse_object({name: config[name] for name in ("method", "model", "data")}))
        made.data.connect(made.model)
        made.data.setup("fit")
        return cls(made.model, made.data)


def forget(lm: EditableLM, job: Job) -> tuple[Scores, float]:
    """Scores, and seconds from facts to the exported model, with nothing computed before."""
    request, monitor = job.data.request, Monitor()
    with monitor.timed("all"), tempfile.TemporaryDirectory() as folder:
        edited = unlearn(lm, request, job.module.method, job.module.layers, job.module.neutral_target)
        scores = evaluate(lm, evaluation_batches(lm, request.forget, request.retain, request.heldout))
        export_model(lm, Path(folder, "model"))
        export_adapter(lm, edited.updates, Path(folder, "adapter"))
    return scores, monitor.seconds["all"]


def ours(words: list[str]) -> tuple[Scores, float]:
    """Scores, what is still known, and seconds of a way of ours."""
    job = Job.described(words)
    lm = EditableLM.from_pretrained(job.module.model_name_or_path, dtype=job.module.dtype_name)
    scores, seconds = forget(lm, job)
    exam = AttackContext.of(job.data.request, ATTACKED)
    ranks = Rank().scores(lm, exam, range(len(exam.facts)))
    # A fact without other answers has no rank.
    known = {name: 100 * statistics.fmean(rank for rank in ranks[name] if not math.isnan(rank)) for name in KNOWN}
    return scores | known, seconds


def published(words: list[str], sample: int) -> float:
    """Seconds of the published procedure on the same data."""
    job = Job.described(words)
    described = argparse.Namespace(
        shape=None, model=job.module.model_name_or_path, layers=job.module.layers, device="cpu", dtype="float32",
        neutral_target=job.module.neutral_target, facts=job.data.path, ids=job.data.ids_file, corpus=job.data.corpus,
        heldout=job.data.heldout, retain=job.data.retain_num, seed=job.data.seed, sample=sample,
        documents=job.data.reading.corpus_documents, facts_per_batch=job.module.method.latents.facts_per_batch,
    )  # fmt: skip
    return sum(measured("published", described, job.data.forget_num).seconds.values())


def compare(arguments: argparse.Namespace, n: int) -> None:
    """Print scores with their standard deviations, median seconds, and ratios, for n facts."""
    common = [f"--config={arguments.config}", f"--data.forget_num={n}", *(f"--{one}" for one in arguments.options)]
    draws = [[*common, f"--data.seed={seed}"] for seed in arguments.seeds]
    ways = [EQUAL, *(way for way in arguments.ways if way != EQUAL)]
    found: dict[str, list[Scores]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in (PUBLISHED, *ways)}
    for number, draw in enumerate(tqdm(draws, desc=f"Draws of {n} facts")):
        for way in ways:
            scores, taken = ours([*draw, *WAYS[way]])
            found[way].append(scores)
            seconds[way].append(taken)
        if number < arguments.rounds:
            seconds[PUBLISHED].append(published([*draw, *WAYS[EQUAL]], arguments.sample))
    names = [*BETTER, "perplexity", *KNOWN]
    print(f"\n{n} facts, {len(draws)} draws; seconds are medians of {arguments.rounds} rounds.\n")
    print(table_head(("way", *names, "s", "ratio", "equal or better")))
    reference = statistics.median(seconds[PUBLISHED])
    for way in (PUBLISHED, *ways):
        of_way = found[EQUAL if way == PUBLISHED else way]
        cells = [_mean_and_deviation([scores[name] for scores in of_way]) for name in names]
        taken = statistics.median(seconds[way][: arguments.rounds])
        print(table_row((way, *cells, f"{taken:.1f}", f"{reference / taken:.1f}", _verdict(of_way, found[EQUAL]))))


def _mean_and_deviation(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


def _verdict(found: list[Scores], reference: list[Scores]) -> str:
    """Whether each score is at most one standard deviation over draws worse than the published procedure's."""
    for name, sign in BETTER.items():
        own, theirs = [one[name] for one in found], [one[name] for one in reference]
        spread = statistics.stdev(theirs) if len(theirs) > 1 else 0.0
        if sign * (statistics.fmean(own) - statistics.fmean(theirs)) < -spread:
            return f"no: {name}"
    return "yes"


def main() -> None:
    """A table for each number of facts."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("--config", default="configs/demo.yaml", help="model and data (default: %(default)s)")
    add("--forget", type=int, nargs="+", default=[200], help="numbers of facts to forget (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=list(range(1, 11)), help="draws of facts (default: %(default)s)")
    add("--rounds", type=int, default=3, help="draws that the published procedure is timed on (default: %(default)s)")
    add("--sample", type=int, default=20, help="facts that it is timed on (default: %(default)s)")
    add("--ways", nargs="+", default=[*WAYS], choices=WAYS, help="which of our ways (default: all)")
    add("--options", nargs="*", default=[], help="options of train.py for all ways, as NAME=VALUE")
    arguments = parser.parse_args()
    for n in arguments.forget:
        compare(arguments, n)


if __name__ == "__main__":
    main()
