r"""Our pipeline and the published procedure, phase by phase: seconds, floating-point work, and memory.

python -m benchmarks.speed.published --forget 10 50 200 1000 --sample 20
python -m benchmarks.speed.published --shape 3b --layers 16 17 18 --forget 1000 --sample 3 --device cuda \
    --dtype bfloat16

Both sides get the same model, facts, contexts, and step budget, and a process each. The published procedure
(``transcription.py``) is timed on ``--sample`` facts and scaled up, since it treats them one at a time.
"""

import argparse
import math
from itertools import pairwise

from benchmarks.console import new_parser, table_head, table_row
from benchmarks.speed.shapes import SHAPES
from benchmarks.speed.sides import measured
from zu_lightning import LatentOptions

PHASES = ("targets", "values", "keys", "moments", "null space", "solve", "evaluation", "export", "total")


def compare(arguments: argparse.Namespace, n: int) -> float:
    """Measure both sides, one after the other, and print their table; returns our seconds."""
    ours, published = measured("ours", arguments, n), measured("published", arguments, n)
    reference = published.targets.double()
    difference = (ours.targets.double() - reference).norm() / reference.norm()
    model = arguments.shape or arguments.model
    print(f"\n{n} facts, layers {arguments.layers}, {model}, {arguments.dtype} on {arguments.device}.")
    print(f"The published procedure is timed on {reference.shape[1]} of them.")
    print(f"The neutral targets of both differ by {difference:.1e} of their norm.\n")
    print(table_head(("phase", "published, s", "ours, s", "ratio")))
    theirs, mine = (side.seconds | {"total": sum(side.seconds.values())} for side in (published, ours))
    rows = [(phase, theirs[phase], mine[phase]) for phase in PHASES]
    rows.append(("Tflop in targets", published.flop / 1e12, ours.flop / 1e12))
    rows.append(("peak GiB", published.peak_gib, ours.peak_gib))
    for name, a, b in rows:
        print(table_row((name, f"{a:.2f}", f"{b:.2f}", f"{a / max(b, 1e-9):.1f}")))
    above = [f"{side.peak_gib - side.loaded_gib:.2f}" for side in (published, ours)]
    print(table_row(("GiB above the loaded model", *above, "")))
    times = mine["targets"] / (ours.flop / ours.rate)
    print(
        f"\nMatrix rate {ours.rate / 1e12:.3f} Tflop/s: our targets take {times:.1f} times the time of their bare work."
    )
    return mine["total"]


def main() -> None:
    """A table for each number of facts, and how our time grows with it."""
    common = ("model", "facts", "ids", "corpus", "heldout", "neutral-target", "layers", "retain", "seed", "device")
    parser = new_parser(__doc__, *common)
    add = parser.add_argument
    add("--shape", choices=SHAPES, help="a random model of a shape in place of --model")
    add("--forget", type=int, nargs="+", default=[50], help="numbers of facts to forget (default: %(default)s)")
    add(
        "--documents", type=int, default=100_000, help="maximum number of documents of each text (default: %(default)s)"
    )
    add("--sample", type=int, help="number of facts on which the published procedure is timed (default: all)")
    add(
        "--facts-per-batch",
        type=int,
        default=LatentOptions().facts_per_batch,
        help="number of facts that we optimize at a time (default: %(default)s)",
    )
    add("--dtype", default="float32", help="how the weights are kept (default: %(default)s)")
    arguments = parser.parse_args()
    totals = [(n, compare(arguments, n)) for n in sorted(arguments.forget)]
    for (n, a), (m, b) in pairwise(totals):
        print(f"From {n} to {m} facts our time grows with n to the power of {math.log(b / a) / math.log(m / n):.2f}.")


if __name__ == "__main__":
    main()
