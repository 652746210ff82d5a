"""What benchmarks share: options, the facts and texts that these name, runs of ``train.py``, and Markdown tables."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import train
from zu_lightning import Fact, facts_by_id, read_facts, read_texts, split_facts

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


def draw_facts(arguments: argparse.Namespace) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """As many facts to forget and to keep as ``--forget`` and ``--retain`` say, and all that they are drawn from."""
    facts = read_facts(arguments.facts)
    if arguments.ids:
        facts = facts_by_id(facts, read_texts(arguments.ids, parameter="--ids"))
    forget, retain, _ = split_facts(facts, arguments.forget, arguments.retain, seed=arguments.seed)
    return forget, retain, facts


def fit(root: Path, *options: str, progress: bool = False) -> Path:
    """Run ``train.py fit`` in this process, by default without progress bars; the folder with its results."""
    words = ["fit", *options, f"--trainer.default_root_dir={root}"]
    words.append(f"--trainer.enable_progress_bar={str(progress).lower()}")
    sys.argv = ["train.py", *words]
    train.main(words)
    return max((root / "lightning_logs").iterdir(), key=lambda path: int(path.name.removeprefix("version_")))


def table_row(cells: Iterable[object]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def table_head(columns: Iterable[str]) -> str:
    """The first two lines of a Markdown table."""
    names = list(columns)
    return f"{table_row(names)}\n|{'---|' * len(names)}"
