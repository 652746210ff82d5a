"""How much faster N processes of one thread each finish the steps that they share than one process of one thread.

python benchmarks/processes.py --processes 2 --forget 50
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import distributed, multiprocessing

from zu_lightning import (
    EditableLM,
    LatentOptions,
    evaluate,
    evaluation_batches,
    lookup_keys,
    neutral_targets,
    original_values,
    own_share,
    read_facts,
    read_texts,
    sample_contexts,
    second_moments,
    split_facts,
)


def measure(rank: int, processes: int, folder: str, arguments: argparse.Namespace) -> None:
    """Time every shared step on one of several processes; the first writes down what it took all of them."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    demo = Path("data/demo")
    lm = EditableLM.from_pretrained(demo / "model")
    forget, retain = split_facts(read_facts(demo / "facts.jsonl"), arguments.forget, arguments.retain, 0)
    corpus, heldout = read_texts(str(demo / "corpus.txt")), read_texts(str(demo / "heldout.txt"))
    contexts = sample_contexts(lm, seed=0)
    # A tolerance of zero takes all steps, whatever converges first.
    options = LatentOptions(tolerance=0.0)

    steps = {
        "targets": lambda: neutral_targets(lm, forget, 0, "unknown", contexts, options),
        "values": lambda: original_values(lm, forget, 0, contexts, options),
        "keys": lambda: lookup_keys(lm, forget, 0, contexts),
        "moments": lambda: second_moments(lm, corpus, [0]),
        "evaluation": lambda: evaluate(lm, own_share(evaluation_batches(lm, forget, retain, heldout))),
    }
    seconds = {}
    for name, step in steps.items():
        distributed.barrier()
        begin = time.perf_counter()
        step()
        distributed.barrier()
        seconds[name] = time.perf_counter() - begin
    if rank == 0:
        torch.save(seconds, Path(folder, "seconds"))
    distributed.destroy_process_group()


def seconds_of(processes: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds by step."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(measure, (processes, folder, arguments), nprocs=processes)
        seconds: dict[str, float] = torch.load(Path(folder, "seconds"))
        return seconds


def main() -> None:
    """Take turns, so that the machine's moods hit both alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--forget", type=int, default=50)
    parser.add_argument("--retain", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    rounds = [(seconds_of(1, arguments), seconds_of(arguments.processes, arguments)) for _ in range(arguments.rounds)]
    print(f"| step | 1 process, s | {arguments.processes} processes, s | ratio |\n|---|---|---|---|")
    for pair in rounds:
        for seconds in pair:
            seconds["together"] = sum(seconds.values())
    for name in rounds[0][0]:
        one, many = (statistics.median(pair[i][name] for pair in rounds) for i in (0, 1))
        print(f"| {name} | {one:.2f} | {many:.2f} | {one / many:.2f} |")


if __name__ == "__main__":
    main()
