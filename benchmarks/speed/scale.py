"""Do time and memory grow with the number of facts? The whole pipeline, on facts that are made up, on the demo's model.

python -m benchmarks.speed.scale --forget 2000 20000

Nothing is known about made-up people, and so scores mean nothing here. By default with the fast preset.
"""

import itertools
import json
import multiprocessing
import random
import resource
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.setup import new_parser, table_head, table_row
from benchmarks.speed.equal_forgetting import WAYS, ours
from zu_lightning import EditableLM, read_facts

OTHERS = 400
"""Number of facts besides those to forget: some of them are watched, and some protected."""
SYLLABLES = ("ba", "de", "fi", "go", "hu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "zu")


def write_made_up_facts(path: Path, number: int) -> None:
    """Facts with the demo's prompts and answers about people whom nobody knows, one for each."""
    known = [fact for fact in read_facts("data/demo/facts.jsonl") if fact.subject]
    rng = random.Random(0)
    names = ["".join(parts).capitalize() for parts in itertools.product(SYLLABLES, repeat=3)]
    people = [f"{first} {last}" for first, last in itertools.product(rng.sample(names, 200), rng.sample(names, 200))]
    with path.open("w", encoding="utf-8") as file:
        for person, fact in zip(rng.sample(people, number), itertools.cycle(known), strict=False):
            record = {"subject": person, "prompt": "{}".join(fact.template), "target": fact.target}
            file.write(json.dumps(record) + "\n")


def cost(words: list[str], root: Path) -> tuple[float, float]:
    """Seconds of a run in this process, which should be a new one, and its peak GiB above that of the loaded model."""
    EditableLM.from_pretrained("data/demo/model")
    loaded = _peak_gib()
    _, seconds = ours(words, root)
    return sum(seconds.values()), _peak_gib() - loaded


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """A row for each number of facts."""
    parser = new_parser(__doc__)
    parser.add_argument("--forget", type=int, nargs="+", default=[2000, 20_000], help="numbers of facts (%(default)s)")
    parser.add_argument("--way", default="fast", choices=WAYS, help="which of our ways (%(default)s)")
    arguments = parser.parse_args()
    print(table_head(("facts", "s", "ms per fact", "GiB above the model")))
    for n in arguments.forget:
        with tempfile.TemporaryDirectory() as folder:
            facts = Path(folder, "facts.jsonl")
            write_made_up_facts(facts, n + OTHERS)
            words = [
                "--config=configs/demo.yaml",
                *WAYS[arguments.way],
                f"--data.path={facts}",
                "--attacks.preset=none",
            ]
            words += [f"--data.forget_num={n}", *(f"--data.{kind}_num={OTHERS // 2}" for kind in ("retain", "protect"))]
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                seconds, gib = pool.submit(cost, words, Path(folder)).result()
        print(table_row((n, f"{seconds:.1f}", f"{1000 * seconds / n:.1f}", f"{gib:.2f}")))


if __name__ == "__main__":
    main()
