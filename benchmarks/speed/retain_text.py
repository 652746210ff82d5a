"""Retain text: what one pass for several layers costs, what the cache saves, and how many tokens are enough.

python benchmarks/retain_text.py
python benchmarks/retain_text.py --model path/to/model --layers 1 2 --corpus corpus.txt --heldout heldout.txt \
    --facts facts.jsonl --neutral unknown --budgets 1000 10000 100000

With too little text, directions that retain keys do use look unused: the second moments of two halves of the text then
differ, and edits are paid for by what should stay.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from frontier import Trial, facts_of, setting_parser
from torch import Tensor

from zu_lightning import (
    EditableLM,
    ZeroUnlearnGD,
    evaluation_batches,
    prepare,
    read_texts,
    retain_documents,
    second_moments,
    split_facts,
)
from zu_lightning.lm.tokens import collate, tokenize
from zu_lightning.problem.keys import batches


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
    parser = setting_parser(__doc__)
    parser.set_defaults(retain=200)
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

    rule, lowest = ZeroUnlearnGD(), arguments.layers[0]
    names = ("efficacy", "specificity", "retain", "perplexity")
    sums = torch.zeros(len(arguments.budgets), 1 + len(names))
    for seed in range(arguments.draws):
        forget, retain = split_facts(facts_of(arguments), arguments.forget, arguments.retain, seed)
        documents = retain_documents(corpus, forget)
        evaluation = evaluation_batches(lm, forget, retain, heldout)
        whole = prepare(lm, forget, documents, arguments.layers, arguments.neutral)
        for row, budget in zip(sums, arguments.budgets, strict=True):
            known = prepare(
                lm, forget, documents, arguments.layers, arguments.neutral, token_budget=budget, known=whole
            )
            moments = (known.second_moments[lowest], whole.second_moments[lowest])
            found = Trial(lm, arguments.layers, forget, evaluation, known).figures(rule)
            energy = 100 * energy_in_free_directions(*moments, rule.threshold)
            row += torch.tensor([energy, *(found[name] for name in names)])
    print(f"| tokens | energy in free directions, % | {' | '.join(names)} |\n|---|---|---|---|---|---|")
    for row, budget in zip(sums / arguments.draws, arguments.budgets, strict=True):
        print(f"| {budget} | " + " | ".join(f"{value:.1f}" for value in row.tolist()) + " |")


if __name__ == "__main__":
    main()
