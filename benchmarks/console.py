"""What the benchmarks read from the command line, and the Markdown tables that they print."""

import argparse
from collections.abc import Iterable
from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "model": {
        "default": "data/demo/model",
        "help": "hub id or directory of a causal language model (default: %(default)s)",
    },
    "facts": {"default": "data/demo/facts.jsonl", "help": "file with the facts (default: %(default)s)"},
    "ids": {"help": "file with one id per line: draw only from these facts (default: draw from all facts)"},
    "corpus": {"default": "data/demo/corpus.txt", "help": "retain text (default: %(default)s)"},
    "heldout": {"default": "data/demo/heldout.txt", "help": "text for the perplexity (default: %(default)s)"},
    "neutral-target": {
        "default": "unknown",
        "help": "what the model should answer instead (default: %(default)s)",
    },
    "layers": {
        "type": int,
        "nargs": "+",
        "default": [0],
        "help": "layers to edit, from 0, lowest first (default: %(default)s)",
    },
    "forget": {"type": int, "default": 10, "help": "number of facts to forget (default: %(default)s)"},
    "retain": {"type": int, "default": 300, "help": "number of other facts to watch (default: %(default)s)"},
    "seed": {"type": int, "default": 0, "help": "seed of the draw (default: %(default)s)"},
    "device": {"default": "cpu", "help": "device of the model, such as cuda (default: %(default)s)"},
}
"""The options that benchmarks have in common."""


def new_parser(description: str | None, *options: str) -> argparse.ArgumentParser:
    """A parser with some of the common options, given by their names."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in options:
        parser.add_argument(f"--{name}", **OPTIONS[name])
    return parser


def table_row(cells: Iterable[object]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(columns: Iterable[str]) -> str:
    """The first two lines of a Markdown table."""
    names = list(columns)
    return f"{table_row(names)}\n|{'---|' * len(names)}"
