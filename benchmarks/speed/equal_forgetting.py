r"""How much sooner the same is forgotten: scores and seconds of the published procedure and of ours, in one run.

python -m benchmarks.speed.equal_forgetting --forget 200 --sample 20
python -m benchmarks.speed.equal_forgetting --forget 50 --options model.model_name_or_path=MODEL model.layers=[1,2] \
    data.path=FACTS data.ids_file=IDS data.corpus=CORPUS data.heldout=HELDOUT
python -m benchmarks.speed.equal_forgetting --config configs/smollm2.yaml --forget 10 --sample 3 --seeds 1 \
    --ways "the default" MEMIT --options model.model_name_or_path=path/to/model.gguf data.reading.corpus_tokens=100000

The published procedure is timed on ``--sample`` facts and scaled up as ``benchmarks.speed.published`` says. Its scores
are those of "equal steps", which has the same targets up to rounding (``benchmarks.speed.published`` says how far
apart). Progress bars estimate the rest, and a line tells what each phase or run took.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import yaml
from tqdm.auto import tqdm

from benchmarks.setup import fit, new_parser, table_head, table_row
from benchmarks.speed.published import measured
from zu_lightning import ReadingOptions, Results
from zu_lightning.runtime.timing import Monitor

PUBLISHED = "published procedure"
EQUAL = "ours, equal steps"
FAST = ["--config=configs/methods/erase.yaml", "--config=configs/presets/fast.yaml"]
WAYS = {
    EQUAL: ["--config=configs/methods/zero_unlearn.yaml", "--release.kl_position=lookup"],
    "the default": ["--config=configs/methods/erase.yaml"],
    "MEMIT": ["--config=configs/methods/memit.yaml"],
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
PHASES = {
    "moments": ("moments",),
    "targets": ("targets",),
    "keys and values": ("keys", "values", "keys_and_values"),
    "solve": ("solve", "apply", "null space", "null_space"),
    "evaluation": ("evaluation",),
    "export": ("export",),
}
"""Phases that count, everything from the facts to the exported model, and what the two procedures call them."""
ATTACKED = 30
"""Maximum number of facts that are attacked."""

Scores = dict[str, float]
Seconds = dict[str, float]


def ours(words: list[str], root: Path) -> tuple[Scores, Seconds]:
    """Scores of a way of ours, how many answers are only covered, and seconds, with nothing computed before."""
    results = Results.read(fit(root, *words, f"--attacks.facts={ATTACKED}", progress=True))
    known = {name: 100 * results.attacks[name]["edited"] for name in KNOWN if name in results.attacks}
    seconds = _by_phase(results.seconds)
    seconds["evaluation"] /= 2  # that after the edit counts, not that before
    return results.after | known, seconds


def published(root: Path, sample: int) -> Seconds:
    """Seconds, by phase, of the published procedure on the model and the data of a run of ours."""
    config = yaml.safe_load((next(root.glob("lightning_logs/*/config.yaml"))).read_text())
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    described = argparse.Namespace(
        shape=None, model=model["model_name_or_path"], layers=model["layers"], device="cpu", dtype="float32",
        neutral_target=model["neutral_target"], facts=data["path"], ids=data["ids_file"], corpus=data["corpus"],
        heldout=data["heldout"], retain=data["retain_num"], seed=data["seed"], sample=sample,
        reading=ReadingOptions(**data["reading"]), forget=data["forget_num"],
        facts_per_batch=config["method"]["init_args"]["latents"]["facts_per_batch"],
    )  # fmt: skip
    return _by_phase(measured("published", described).seconds)


def _by_phase(seconds: Seconds) -> Seconds:
    return {phase: sum(seconds.get(name, 0.0) for name in names) for phase, names in PHASES.items()}


def compare(arguments: argparse.Namespace, n: int) -> None:
    """Print scores with their standard deviations, median seconds, and ratios, for n facts."""
    common = [f"--config={arguments.config}", f"--data.forget_num={n}", *(f"--{one}" for one in arguments.options)]
    draws = [[*common, f"--data.seed={seed}"] for seed in arguments.seeds]
    ways = [EQUAL, *(way for way in arguments.ways if way != EQUAL)]
    found: dict[str, list[Scores]] = {way: [] for way in ways}
    seconds: dict[str, list[Seconds]] = {way: [] for way in (PUBLISHED, *ways)}
    total = len(draws) * len(ways) + min(len(draws), arguments.rounds)
    with Monitor(progress=True).bar(f"Runs with {n} facts", total, "runs") as bar:

        def took(way: str, by_phase: Seconds) -> None:
            seconds[way].append(by_phase)
            bar.update()
            parts = ", ".join(f"{phase} {taken:.1f}" for phase, taken in by_phase.items())
            tqdm.write(f"{way}: {sum(by_phase.values()):.1f} s ({parts})", file=sys.stderr)

        for number, draw in enumerate(draws):
            with tempfile.TemporaryDirectory() as folder:
                for way in ways:
                    scores, by_phase = ours([*draw, *WAYS[way]], Path(folder, way))
                    found[way].append(scores)
                    took(way, by_phase)
                if number < arguments.rounds:
                    took(PUBLISHED, published(Path(folder, EQUAL), arguments.sample))
    names = [name for name in (*BETTER, "perplexity", *KNOWN) if name in found[EQUAL][0]]
    print(f"\n{n} facts, {len(draws)} draws; seconds are medians of {min(len(draws), arguments.rounds)} rounds.\n")
    print(table_head(("way", *names, *(f"{phase}, s" for phase in PHASES), "s", "ratio", "equal or better")))
    medians = {way: _medians(of_way[: arguments.rounds]) for way, of_way in seconds.items()}
    for way in (PUBLISHED, *ways):
        of_way = found[EQUAL if way == PUBLISHED else way]
        cells = [_mean_and_deviation([scores[name] for scores in of_way]) for name in names]
        cells += [f"{taken:.1f}" for taken in medians[way].values()]
        ratio = medians[PUBLISHED]["all"] / medians[way]["all"]
        print(table_row((way, *cells, f"{ratio:.1f}", _verdict(of_way, found[EQUAL]))))


def _medians(rounds: list[Seconds]) -> Seconds:
    """The median seconds of each phase over rounds, and of ``all`` together."""
    rounds = [one | {"all": sum(one.values())} for one in rounds]
    return {phase: statistics.median(one[phase] for one in rounds) for phase in rounds[0]}


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
