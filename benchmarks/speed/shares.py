"""Memory of each of N processes, and seconds, when they share the columns of many facts (random numbers).

python -m benchmarks.speed.shares --facts 40000 --processes 1 2 3
"""

import argparse
import resource
import tempfile
from pathlib import Path

import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn

from benchmarks.console import new_parser, table_head, table_row
from zu_lightning import LayerProblem, Memit, ZeroUnlearnGD
from zu_lightning.editing.objective import LayerObjective, new_delta
from zu_lightning.runtime.distributed import rank_slice
from zu_lightning.runtime.timing import Monitor


def measure(rank: int, processes: int, folder: str, arguments: argparse.Namespace) -> None:
    """Solve a layer's problem and take a step of descent, as one of several processes; write what that took."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    (d_out, d_in), own = arguments.shape, rank_slice(arguments.facts)
    weight, monitor, begun = _random(d_out, d_in), Monitor(), _peak_mib()
    count = own.stop - own.start
    keys, residuals, values = (_random(length, count) for length in (d_in, d_out, d_out))
    problem = LayerProblem(0, keys, residuals, values, torch.eye(d_in, dtype=torch.float64))
    columns = sum(tensor.nbytes for tensor in (problem.keys, problem.residuals, problem.values))
    with monitor.timed("solve"):
        Memit()(weight, problem)
    with monitor.timed("descent"):
        rule = ZeroUnlearnGD(threshold=1.0)
        objective = LayerObjective(weight, rule.in_units(problem), rule.weights)
        delta = new_delta("whitened", weight, arguments.facts)
        delta.begin(objective.whole.keys, rule.null_space(objective.problem), rule.weights)
        torch.autograd.backward(objective.terms(delta()).loss)
    found = [columns / 2**20, _peak_mib() - begun, *monitor.seconds.values()]
    torch.save(torch.tensor(found), Path(folder, str(rank)))
    distributed.barrier()
    distributed.destroy_process_group()


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """One row for each number of processes: the largest of each figure over the processes."""
    parser = new_parser(__doc__)
    parser.add_argument("--facts", type=int, default=40_000, help="number of facts (default: %(default)s)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 3], help="numbers (default: %(default)s)")
    parser.add_argument("--shape", type=int, nargs=2, default=[384, 896], help="d_out and d_in (default: %(default)s)")
    arguments = parser.parse_args()
    print(table_head(("processes", "columns, MiB", "peak above the start, MiB", "solve, s", "one descent step, s")))
    for processes in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            spawn(measure, (processes, folder, arguments), nprocs=processes)  # type: ignore[no-untyped-call]
            found = torch.stack([torch.load(Path(folder, str(rank))) for rank in range(processes)]).max(0)[0].tolist()
        print(table_row((processes, *(f"{figure:.0f}" for figure in found[:2]), *(f"{s:.1f}" for s in found[2:]))))


if __name__ == "__main__":
    main()
