"""Memory and time for models that are not at hand, computed from their shapes by the formulas of docs/cost.md.

python benchmarks/estimate.py --facts 1000 --gpus 1
"""

import argparse
from dataclasses import dataclass

RATE = 0.4 * 790e12
"""Flop/s: 40 % of what bfloat16 products of large matrices have been seen to reach on an H200."""
STEPS, CONTEXTS, PREFIX, SUFFIX, PLACES = 25, 7, 8, 6, 1.5
"""Steps of a fact never done early; rows a fact; tokens up to the lookup token, and from there; logits a row."""
QUERY_TOKENS, QUERIES, RETAIN_TOKENS = 16, 13, 1_000_000


@dataclass(frozen=True)
class Shape:
    """A decoder, and the layers that are edited."""

    name: str
    width: int
    inner: int
    depth: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    layers: tuple[int, ...]

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        attention = self.width * self.head_width * (2 * self.heads + 2 * self.key_value_heads)
        return attention + 3 * self.width * self.inner

    @property
    def head(self) -> int:
        """Parameters of the language model's head."""
        return self.width * self.vocabulary

    def above(self, layer: int) -> int:
        """Layers above one."""
        return self.depth - 1 - layer


SHAPES = (
    Shape("Llama-3.2-3B", 3072, 8192, 28, 24, 8, 128, 128_256, (16, 17, 18)),
    Shape("Qwen3-4B", 2560, 9728, 36, 32, 8, 128, 151_936, (9, 10, 11)),
    Shape("Llama-3.1-8B", 4096, 14_336, 32, 32, 8, 128, 128_256, (19, 20, 21)),
)


def seconds(shape: Shape, facts: int, gpus: int) -> dict[str, float]:
    """By phase, at the assumed rate."""
    below = (shape.layers[-1] + 1) * shape.layer
    prefix = 2 * PREFIX * shape.depth * shape.layer

    def latent(layer: int) -> float:
        steps = 4 * STEPS * (SUFFIX * shape.above(layer) * shape.layer + PLACES * shape.head)
        return facts * CONTEXTS * (prefix + steps)

    queries = facts * QUERIES * QUERY_TOKENS * 2 * (shape.depth * shape.layer + shape.head / QUERY_TOKENS)
    products = len(shape.layers) * 2 * 5 / 8 * shape.inner**2
    shared = {
        "targets": latent(shape.layers[-1]),
        "values, at most": sum(latent(layer) for layer in shape.layers),
        "keys": sum(facts * CONTEXTS * 2 * PREFIX * (layer + 1) * shape.layer for layer in shape.layers),
        "moments": RETAIN_TOKENS * (2 * below + products),
        "evaluation": queries * (1 + len(shape.layers)),
    }
    # In float64, on the tensor cores at a tenth of their 67 Tflop/s: eigenvalue problems are bound by memory.
    return {name: flop / RATE / gpus for name, flop in shared.items()} | {
        "null space": len(shape.layers) * 9 * shape.inner**3 / 6.7e12
    }


def gibibytes(shape: Shape, facts: int) -> dict[str, float]:
    """By what is held, on every GPU."""
    parameters = shape.depth * shape.layer + shape.head
    rows = 64 * CONTEXTS
    above = shape.above(shape.layers[0])
    # Two bytes a number: keys and values of contexts (12 tokens) and prompts; about 12 vectors of the stream's width
    # and 4 of the MLP's that a layer keeps for its gradient. Logits, their softmax and its gradient in float32.
    cached = 2 * 2 * (12 + PREFIX) * shape.key_value_heads * shape.head_width * above
    activations = 2 * SUFFIX * (12 * shape.width + 4 * shape.inner) * above + 3 * 4 * PLACES * shape.vocabulary
    sizes = {
        "weights": 2 * parameters,
        "second moments": 8 * len(shape.layers) * shape.inner**2,
        "eigenvectors, for a while": 3 * 8 * shape.inner**2,
        "a batch of 64 facts": rows * (cached + activations),
        "columns": 8 * facts * (shape.inner + 3 * shape.width),
    }
    return {name: size / 2**30 for name, size in sizes.items()}


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--facts", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=1)
    arguments = parser.parse_args()
    print(f"{arguments.facts} facts on {arguments.gpus} GPUs, computed from shapes, not measured\n")
    print("| | " + " | ".join(shape.name for shape in SHAPES) + " |\n|---|" + "---|" * len(SHAPES))
    times = [seconds(shape, arguments.facts, arguments.gpus) for shape in SHAPES]
    spaces = [gibibytes(shape, arguments.facts) for shape in SHAPES]
    for unit, columns in (("s", times), ("GiB", spaces)):
        for name in (*columns[0], "together"):
            values = [sum(column.values()) if name == "together" else column[name] for column in columns]
            print(f"| {name}, {unit} | " + " | ".join(f"{value:.1f}" for value in values) + " |")


if __name__ == "__main__":
    main()
