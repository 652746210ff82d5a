"""How much faster N processes of one thread each finish the steps that they share than one process of one thread.

python -m benchmarks.speed.processes --processes 2 --forget 50
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from benchmarks.setup import draw_facts, new_parser, table_head, table_row
from zu_lightning import (
    EditableLM,
    LatentOptions,
    ReadingOptions,
    RetainText,
    ZeroUnlearn,
    evaluate,
    evaluation_batches,
    lookup_keys,
    neutral_targets,
    original_values,
    rank_shard,
    read_texts,
    sample_contexts,
    second_moments,
)
from zu_lightning.editing.latents import Aim
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.runtime.timing import Monitor


def measure(rank: int, processes: int, folder: str, arguments: argparse.Namespace) -> None:
    """Time every shared step in one of several processes; the first writes how long all of them took."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    lm, layers = EditableLM.from_pretrained(arguments.model), arguments.layers
    forget, retain, _ = draw_facts(arguments)
    whole = ReadingOptions(corpus_tokens=None)
    corpus = RetainText(read_texts(arguments.corpus, whole.corpus_documents), whole)
    heldout = read_texts(arguments.heldout, whole.heldout_documents)
    contexts = sample_contexts(lm)
    # With a tolerance of zero all steps are taken, whatever converges first.
    method, aim = ZeroUnlearn(latents=LatentOptions(tolerance=0.0)), Aim(arguments.neutral_target)
    variants = PromptVariants(contexts)
    steps: dict[str, Callable[[], object]] = {
        "targets": lambda: neutral_targets(lm, forget, layers[-1], variants, aim, method),
        "values": lambda: original_values(lm, forget, layers[-1], contexts, method),
        "keys": lambda: lookup_keys(lm, forget, layers[-1], contexts),
        "moments": lambda: second_moments(lm, corpus, layers),
        "evaluation": lambda: evaluate(lm, rank_shard(evaluation_batches(lm, forget, retain, heldout))),
    }
    monitor = Monitor()
    for name, step in steps.items():
        distributed.barrier()
        with monitor.timed(name):
            step()
            distributed.barrier()
    if rank == 0:
        torch.save(monitor.seconds, Path(folder, "seconds"))
    distributed.destroy_process_group()


def seconds_of(processes: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds by step."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(measure, (processes, folder, arguments), nprocs=processes)  # type: ignore[no-untyped-call]
        seconds: dict[str, float] = torch.load(Path(folder, "seconds"))
        return seconds | {"total": sum(seconds.values())}


def main() -> None:
    """Let one process and several take turns, so that what else the machine does slows both alike."""
    options = ("model", "facts", "ids", "corpus", "heldout", "neutral-target", "layers", "forget", "retain", "seed")
    parser = new_parser(__doc__, *options)
    parser.set_defaults(forget=50)
    parser.add_argument("--processes", type=int, default=2, help="number of processes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take medians of (default: %(default)s)")
    arguments = parser.parse_args()
    rounds = [(seconds_of(1, arguments), seconds_of(arguments.processes, arguments)) for _ in range(arguments.rounds)]
    print(table_head(("step", "1 process, s", f"{arguments.processes} processes, s", "ratio")))
    for name in rounds[0][0]:
        one, many = (statistics.median(pair[i][name] for pair in rounds) for i in (0, 1))
        print(table_row((name, f"{one:.2f}", f"{many:.2f}", f"{one / many:.2f}")))


if __name__ == "__main__":
    main()
