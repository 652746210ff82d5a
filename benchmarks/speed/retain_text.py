r"""Retain text: what one pass for several layers costs, what the cache saves, and how many tokens are enough.

python -m benchmarks.speed.retain_text
python -m benchmarks.speed.retain_text --model path/to/model --layers 1 2 --corpus corpus.txt --heldout heldout.txt \
    --facts facts.jsonl --neutral-target unknown --budgets 1000 10000 100000

With too little text, directions that retain keys do use look unused: the second moments of two halves of the text then
differ, and what should be kept pays for the edits.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.console import new_parser, table_head, table_row
from benchmarks.setting import WHOLE, Trial, corpus_documents, load_model
from zu_lightning import EditableLM, ReadingOptions, RetainText, TargetOptions, ZeroUnlearnGD, second_moments
from zu_lightning.lm.batching import batches
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.tokens import collate, tokenize
from zu_lightning.runtime.timing import Monitor

LAYERS = 3
"""Number of layers, from the lowest, whose moments are computed in the pass that is timed."""
SCORES = ("efficacy", "specificity", "retain", "perplexity")


def bare_forward(lm: EditableLM, text: RetainText, highest: int) -> None:
    """A pass over the same batches, up to the same layer, that computes nothing else."""
    max_length = min(text.reading.max_length, lm.context_length)
    documents = [tokenize(lm.tokenizer, document, max_length=max_length) for document in text.documents]
    for indices in batches(documents, text.reading.batch_tokens):
        batch = collate([documents[i] for i in indices], lm.tokenizer).to(lm.device)
        lm.record(batch, [lm.projections[highest]])


def fastest(work: Callable[[], object], reweighting_iterations: int = 3) -> float:
    """Seconds of the fastest of some rounds."""
    taken = []
    for _ in range(reweighting_iterations):
        monitor = Monitor()
        with monitor.timed("round"):
            work()
        taken.append(monitor.seconds["round"])
    return min(taken)


def time_the_pass(lm: EditableLM, corpus: list[str]) -> None:
    """Print the seconds of a bare forward pass, of the second moments, and of those from the cache."""
    text, layers = RetainText(corpus, WHOLE), list(range(min(LAYERS, len(lm.layers))))
    bare = fastest(lambda: bare_forward(lm, text, layers[-1]))
    full = fastest(lambda: second_moments(lm, text, layers))
    with tempfile.TemporaryDirectory() as folder:
        cache = open_cache(Path(folder), lm)
        second_moments(lm, text, layers, cache=cache)
        cached = fastest(lambda: second_moments(lm, text, layers, cache=cache))
    print(f"Layers {layers}: forward pass up to the highest {bare:.2f} s, second moments {full:.2f} s")
    print(f"({full / bare:.2f} times as long), from the cache {cached:.3f} s.\n")


def energy_in_free_directions(moment: Tensor, reference: Tensor, threshold: float) -> float:
    """Share of the energy of ``reference`` in the directions that ``moment`` calls unused."""
    eigenvalues, basis = torch.linalg.eigh(moment)
    free = basis[:, eigenvalues < threshold * eigenvalues.mean()]
    share: float = ((free.mT @ reference @ free).trace() / reference.trace()).item()
    return share


def energy_and_scores(trial: Trial, budgets: list[int]) -> Tensor:
    """For each budget of tokens, the energy of all retain keys in its free directions (%), and the scores."""
    rule, lowest, rows = ZeroUnlearnGD(), trial.layers[0], []
    whole = trial.prepare()
    for budget in budgets:
        preparation = trial.prepare(ReadingOptions(corpus_tokens=budget), whole.targets)
        moments = (preparation.second_moments[lowest], whole.second_moments[lowest])
        scores = trial.scores(rule, preparation)
        rows.append([100 * energy_in_free_directions(*moments, rule.threshold), *(scores[name] for name in SCORES)])
    return torch.tensor(rows)


def arguments_of_the_command() -> argparse.Namespace:
    """The options that were given."""
    options = ("model", "facts", "ids", "corpus", "heldout", "neutral-target", "layers", "forget", "retain", "device")
    parser = new_parser(__doc__, *options)
    parser.set_defaults(retain=200)
    parser.add_argument("--draws", type=int, default=3, help="draws of facts to average over (default: %(default)s)")
    parser.add_argument(
        "--budgets",
        type=int,
        nargs="+",
        default=[300, 1000, 3000, 10_000, 30_000, 100_000],
        help="maximum numbers of tokens of the retain text (default: %(default)s)",
    )
    return parser.parse_args()


def main() -> None:
    """The seconds of one pass, and a table of budgets."""
    arguments = arguments_of_the_command()
    lm, targets = load_model(arguments), TargetOptions(arguments.neutral_target)
    time_the_pass(lm, corpus_documents(arguments))
    trials = (Trial.drawn(lm, arguments, seed, targets) for seed in range(arguments.draws))
    means = torch.stack([energy_and_scores(trial, arguments.budgets) for trial in trials]).mean(0)
    print(table_head(("tokens", "energy in free directions, %", *SCORES)))
    for budget, row in zip(arguments.budgets, means.tolist(), strict=True):
        print(table_row([budget, *(f"{value:.1f}" for value in row)]))


if __name__ == "__main__":
    main()
