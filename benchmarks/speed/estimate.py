"""Time and memory of large models, computed from their shapes by the formulas of docs/explanation/cost.md.

python -m benchmarks.speed.estimate --facts 1000 --gpus 1
"""

from benchmarks.setup import new_parser, table_head, table_row
from benchmarks.speed.shapes import SHAPES, Shape

ESTIMATED = ("3b", "4b", "8b")
RATE = 0.4 * 790e12
"""Flop/s: 40 % of what bfloat16 products of large matrices have been seen to reach on an H200."""
DOUBLE_RATE = 6.7e12
"""The same in float64, a tenth of what its tensor cores are made for: eigenvalue problems are bound by memory."""
STEPS, CONTEXTS, PREFIX, SUFFIX, PLACES = 25, 7, 8, 6, 1.5
"""Steps of a fact that is never done early; rows per fact; tokens of a row up to the lookup token, and from there on;
logits per row."""
QUERY_TOKENS, QUERIES, RETAIN_TOKENS = 16, 13, 1_000_000
"""Tokens per query; queries per fact; tokens of the retain text."""


def seconds(shape: Shape, facts: int, gpus: int) -> dict[str, float]:
    """Seconds by phase, at the assumed rate."""
    parameters, head = shape.layer_parameters, shape.head_parameters
    below = (shape.layers[-1] + 1) * parameters
    prefix = 2 * PREFIX * shape.depth * parameters

    def latent(layer: int) -> float:
        steps = 4 * STEPS * (SUFFIX * shape.above(layer) * parameters + PLACES * head)
        return facts * CONTEXTS * (prefix + steps)

    queries = facts * QUERIES * QUERY_TOKENS * 2 * (shape.depth * parameters + head / QUERY_TOKENS)
    products = len(shape.layers) * 2 * 5 / 8 * shape.inner**2
    shared = {
        "targets": latent(shape.layers[-1]),
        "values, at most": sum(latent(layer) for layer in shape.layers),
        "keys": sum(facts * CONTEXTS * 2 * PREFIX * (layer + 1) * parameters for layer in shape.layers),
        "moments": RETAIN_TOKENS * (2 * below + products),
        "evaluation": queries * (1 + len(shape.layers)),
    }
    inner, width, layers = shape.inner, shape.width, len(shape.layers)
    solve = float(width**3 + (inner + width) * facts**2)
    if facts > inner:
        solve = 2 * facts / gpus * (inner**2 + inner * width + width**2) + 9 * (inner**3 + width**3)
    return {name: flop / RATE / gpus for name, flop in shared.items()} | {
        "null space": layers * 9 * inner**3 / DOUBLE_RATE,
        "solve": layers * solve / DOUBLE_RATE,
    }


def gibibytes(shape: Shape, facts: int, gpus: int) -> dict[str, float]:
    """GiB by what is held, on every GPU."""
    rows = 64 * CONTEXTS
    above = shape.above(shape.layers[0])
    # Two bytes per number: keys and values of contexts (12 tokens) and prompts; about 12 vectors of the stream's width
    # and 4 of the MLP's that a layer keeps for its gradient. Logits, their softmax, and its gradient in float32.
    cached = 2 * 2 * (12 + PREFIX) * shape.key_value_heads * shape.head_width * above
    activations = 2 * SUFFIX * (12 * shape.width + 4 * shape.inner) * above + 3 * 4 * PLACES * shape.vocabulary
    to_solve = 3 * shape.inner**2 + 2 * shape.inner * shape.width + shape.width**2
    of_few = facts * (shape.inner + 2 * shape.width)
    sizes = {
        "weights": 2 * (shape.depth * shape.layer_parameters + shape.head_parameters),
        "second moments": 8 * len(shape.layers) * shape.inner**2,
        "eigenvectors, temporarily": 3 * 8 * shape.inner**2,
        "a batch of 64 facts": rows * (cached + activations),
        "columns, with copies": 8 * facts / gpus * (2 * shape.inner + 6 * shape.width),
        "columns or sums to solve from": 8 * (to_solve if facts > shape.inner else of_few),
    }
    return {name: size / 2**30 for name, size in sizes.items()}


def main() -> None:
    """One table."""
    parser = new_parser(__doc__)
    parser.add_argument("--facts", type=int, default=1000, help="number of facts to forget (default: %(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs (default: %(default)s)")
    arguments = parser.parse_args()
    shapes = [SHAPES[key] for key in ESTIMATED]
    print(f"{arguments.facts} facts, GPUs: {arguments.gpus}; computed from shapes, not measured\n")
    print(table_head(("", *(shape.name for shape in shapes))))
    times = [seconds(shape, arguments.facts, arguments.gpus) for shape in shapes]
    spaces = [gibibytes(shape, arguments.facts, arguments.gpus) for shape in shapes]
    for unit, columns in (("s", times), ("GiB", spaces)):
        for column in columns:
            column["total"] = sum(column.values())
        for name in columns[0]:
            print(table_row([f"{name}, {unit}", *(f"{column[name]:.1f}" for column in columns)]))


if __name__ == "__main__":
    main()
