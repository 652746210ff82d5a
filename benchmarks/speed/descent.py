"""Gradient descent on the ZeroUnlearn-GD objective: gap and seconds of several ways, beside the exact solution.

python benchmarks/descent.py --forget 50
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.optim import SGD, Adam, Optimizer

from zu_lightning import (
    EditableLM,
    ZeroUnlearnGD,
    layer_problem,
    prepare,
    read_facts,
    read_texts,
    retain_documents,
    split_facts,
)
from zu_lightning.methods.objective import Delta, DenseDelta, Objective, WhitenedDelta, step_size


def row(name: str, steps: int | str, gap: float, seconds: float) -> str:
    """One line of the table."""
    return f"| {name} | {steps} | {gap:.1e} | {seconds:.3f} |"


def main() -> None:
    """Prepare one layer's problem, then solve it in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="data/demo/model")
    parser.add_argument("--facts", default="data/demo/facts.jsonl")
    parser.add_argument("--corpus", default="data/demo/corpus.txt")
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--forget", type=int, default=50)
    arguments = parser.parse_args()
    lm, rule, layers = EditableLM.from_pretrained(arguments.model), ZeroUnlearnGD(), [arguments.layer]
    forget, _ = split_facts(read_facts(arguments.facts), arguments.forget, 0, 0)
    documents = retain_documents(read_texts(arguments.corpus, 100_000, "--corpus"), forget)
    known = prepare(lm, forget, documents, layers, "unknown")
    problem = rule.in_units(layer_problem(lm, forget, arguments.layer, layers, known))
    basis = rule.null_space(problem)
    weight = lm.weight(arguments.layer)
    terms = {"zero_weight": rule.zero_weight, "forget_weight": rule.forget_weight, "ridge": rule.ridge}
    objective = Objective(weight, problem.keys, problem.residuals, problem.values, **terms)

    begin = time.perf_counter()
    update = objective.exact(basis)
    seconds = time.perf_counter() - begin
    optimum = objective.terms(update).total
    print(f"{arguments.forget} facts, W {tuple(weight.shape)}, null space of {basis.shape[1]} directions\n")
    print("| way | steps | gap | seconds |\n|---|---|---|---|")
    print(row("exact", "", 0.0, seconds))

    def descend(name: str, delta: Delta, optimizer: Optimizer, steps: int, tolerance: float = 0.0) -> None:
        begin = time.perf_counter()
        delta.begin(problem.keys, basis, forget_weight=rule.forget_weight, ridge=rule.ridge)
        for step in range(steps + 1):
            loss = objective.terms(delta()).total
            gap = ((loss - optimum) / optimum).item()
            if gap <= tolerance or step == steps:
                break
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        print(row(name, step, gap, time.perf_counter() - begin), flush=True)

    d_out, d_in = weight.shape
    longest = step_size(rule.zero_weight, rule.forget_weight)
    for tolerance in (1e-6, 1e-10):
        whitened = WhitenedDelta(d_out, arguments.forget)
        plain = SGD(whitened.parameters(), lr=longest)
        descend(f"whitened, plain descent, to a gap of {tolerance:g}", whitened, plain, 20, tolerance)
    for rate in (1e-3, 1e-2, 1e-1):
        dense = DenseDelta(d_out, d_in)
        descend(f"dense Delta, Adam, learning rate {rate:g}", dense, Adam(dense.parameters(), lr=rate), 500)


if __name__ == "__main__":
    main()
