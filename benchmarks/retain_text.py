"""Retain text: what one pass for several layers costs, what the cache saves, and how many tokens are enough.

python benchmarks/retain_text.py
python benchmarks/retain_text.py --model path/to/model --layers 1 2 --corpus corpus.txt --heldout heldout.txt \
    --facts facts.jsonl --neutral unknown --budgets 1000 10000 100000

With too little text, directions that retain keys do use look unused: the second moments of two halves of the text then
differ, and edits are paid for by what should stay.
"""

import argparse
import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

from zu_lightning import (
    EditableLM,
    ZeroUnlearnGD,
    evaluate,
    evaluation_batches,
    facts_by_id,
    layer_problem,
    prepare,
    read_facts,
    read_texts,
    retain_documents,
    second_moments,
    split_facts,
)
from zu_lightning.keys import batches
from zu_lightning.tokens import collate, tokenize


def bare_forward(lm: EditableLM, texts: list[str], highest: int) -> None:
    """The same batches, up to the same layer, and nothing else."""
    documents = [tokenize(lm.tokenizer, text, max_length=min(512, lm.context_length)) for text in texts]
    for indices in batches(documents, 2048):
        lm.record(lm.to_device(collate([documents[i] for i in indices], lm.tokenizer)), [lm.projections[highest]])


def seconds(work: Callable[[], object], rounds: int = 3) -> float:
    """The fastest of some rounds."""
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def energy_in_free_directions(moment: Tensor, reference: Tensor, threshold: float) -> float:
    """Share of the energy of ``reference`` in the directions that ``moment`` calls unused."""
    eigenvalues, basis = torch.linalg.eigh(moment)
    free = basis[:, eigenvalues < threshold * eigenvalues.mean()]
    return ((free.mT @ reference @ free).trace() / reference.trace()).item()


def main() -> None:
    """Two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/demo/model")
    parser.add_argument("--facts", default="data/demo/facts.jsonl")
    parser.add_argument("--corpus", default="data/demo/corpus.txt")
    parser.add_argument("--heldout", default="data/demo/heldout.txt")
    parser.add_argument("--neutral", default="unknown")
    parser.add_argument("--layers", type=int, nargs="+", default=[0])
    parser.add_argument("--forget", type=int, default=10)
    parser.add_argument("--retain", type=int, default=200)
    parser.add_argument("--ids", help="file of the ids of facts to draw from; all by default")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--budgets", type=int, nargs="+", default=[300, 1000, 3000, 10_000, 30_000, 100_000])
    arguments = parser.parse_args()
    lm = EditableLM.from_pretrained(arguments.model)
    corpus, heldout = read_texts(arguments.corpus), read_texts(arguments.heldout)

    three = list(range(min(3, len(lm.layers))))
    bare = seconds(lambda: bare_forward(lm, corpus, three[-1]))
    full = seconds(lambda: second_moments(lm, corpus, three))
    with tempfile.TemporaryDirectory() as folder:
        second_moments(lm, corpus, three, cache=Path(folder))
        cached = seconds(lambda: second_moments(lm, corpus, three, cache=Path(folder)))
    print(
        f"layers {three}: bare truncated forward {bare:.2f} s, second moments {full:.2f} s ({full / bare:.2f} times), "
    )
    print(f"from the cache {cached:.3f} s\n")

    facts, rule = read_facts(arguments.facts), ZeroUnlearnGD()
    facts = facts_by_id(facts, read_texts(arguments.ids)) if arguments.ids else facts
    weights = copy.deepcopy(lm.model.state_dict())
    names = ("efficacy", "specificity", "retain", "perplexity")
    print(f"| tokens | energy in free directions, % | {' | '.join(names)} |\n|---|---|---|---|---|---|")
    for budget in arguments.budgets:
        figures: list[Tensor] = []
        for seed in range(arguments.draws):
            forget, retain = split_facts(facts, arguments.forget, arguments.retain, seed)
            documents = retain_documents(corpus, forget)
            known = prepare(lm, forget, documents, arguments.layers, arguments.neutral, token_budget=budget)
            whole = second_moments(lm, documents, arguments.layers)
            lowest = arguments.layers[0]
            energy = energy_in_free_directions(known.second_moments[lowest], whole[lowest], rule.threshold)
            for layer in arguments.layers:
                lm.apply(layer, rule(lm.weight(layer), layer_problem(lm, forget, layer, arguments.layers, known)))
            found = evaluate(lm, evaluation_batches(lm, forget, retain, heldout))
            lm.model.load_state_dict(weights)
            figures.append(torch.tensor([100 * energy, *(found[name] for name in names)]))
        row = torch.stack(figures).mean(0).tolist()
        print(f"| {budget} | " + " | ".join(f"{value:.1f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    main()
