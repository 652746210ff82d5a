"""Every rule over its weights on one model and one draw of facts, as a Markdown table.

python benchmarks/frontier.py --forget 10 --seed 0
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from zu_lightning import (
    AlphaEdit,
    EditableLM,
    EvaluationBatch,
    Fact,
    LatentOptions,
    Memit,
    Preparation,
    Rome,
    Rule,
    ZeroUnlearn,
    ZeroUnlearnGD,
    ZeroUnlearnSoft,
    evaluate,
    evaluation_batches,
    facts_by_id,
    layer_problem,
    prepare,
    read_facts,
    read_texts,
    retain_documents,
    split_facts,
)

PAPER = ZeroUnlearn(scale_free=False, retain_weight=15000.0, forget_weight=50.0, ridge=1.0)
RULES: dict[str, Rule] = {
    "ZeroUnlearn, paper's weights (15000, 50, 1)": PAPER,
    **{f"ZeroUnlearn, retain {w:g}": ZeroUnlearn(retain_weight=w, ridge=w / 100) for w in (10, 3, 2, 1, 0.3, 0.1)},
    **{f"ZeroUnlearn-GD, threshold {t:g}": ZeroUnlearnGD(threshold=t) for t in (0.01, 0.03, 0.1, 0.15, 0.3, 1)},
    **{
        f"ZeroUnlearn-GD, threshold 0.03, zero {w:g}": ZeroUnlearnGD(threshold=0.03, zero_weight=w)
        for w in (100, 10000)
    },
    **{f"ZeroUnlearn-GD, threshold 0.03, ridge {w:g}": ZeroUnlearnGD(threshold=0.03, ridge=w) for w in (1, 10, 30)},
    **{f"soft, retain {w:g}": ZeroUnlearnSoft(retain_weight=w, ridge=w / 100) for w in (3, 1, 0.5, 0.2, 0.1)},
    "MEMIT, paper's weight 15000": Memit(scale_free=False, retain_weight=15000.0),
    **{f"MEMIT, retain {w:g}": Memit(retain_weight=w) for w in (3, 1, 0.3, 0.1)},
    **{f"AlphaEdit, threshold {t:g}": AlphaEdit(threshold=t) for t in (0.1, 0.3, 1, 3)},
    "ROME": Rome(),
}
COLUMNS = ("efficacy", "generalization", "specificity", "retain", "perplexity")


@dataclass(frozen=True)
class Trial:
    """A model, its facts and what has been read from it."""

    lm: EditableLM
    layers: Sequence[int]
    forget: list[Fact]
    evaluation: list[EvaluationBatch]
    known: Preparation
    options: LatentOptions = field(default_factory=LatentOptions)

    def figures(self, rule: Rule) -> dict[str, float]:
        """The evaluation after a rule's edit, which is taken back."""
        weights = {layer: self.lm.weight(layer).clone() for layer in self.layers}
        try:
            for layer in self.layers:
                problem = layer_problem(
                    self.lm, self.forget, layer, self.layers, self.known, options=self.options, optimise_values=True
                )
                self.lm.apply(layer, rule(self.lm.weight(layer), problem))
            return evaluate(self.lm, self.evaluation)
        finally:
            for layer, weight in weights.items():
                self.lm.set_weight(layer, weight)


def row(name: str, figures: dict[str, float]) -> str:
    """One line of the table."""
    return f"| {name} | " + " | ".join(f"{figures.get(column, float('nan')):.4g}" for column in COLUMNS) + " |"


def setting_parser(description: str | None) -> argparse.ArgumentParser:
    """What a trial is made of: the model, its layers, facts and text."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/demo/model")
    parser.add_argument("--facts", default="data/demo/facts.jsonl")
    parser.add_argument("--corpus", default="data/demo/corpus.txt")
    parser.add_argument("--heldout", default="data/demo/heldout.txt")
    parser.add_argument("--neutral", default="unknown")
    parser.add_argument("--layers", type=int, nargs="+", default=[0])
    parser.add_argument("--ids", help="file of the ids of facts to draw from; all by default")
    parser.add_argument("--forget", type=int, default=10)
    parser.add_argument("--retain", type=int, default=300)
    return parser


def facts_of(arguments: argparse.Namespace) -> list[Fact]:
    """The facts to draw from."""
    facts = read_facts(arguments.facts)
    return facts_by_id(facts, read_texts(arguments.ids)) if arguments.ids else facts


def main() -> None:
    """Prepare once, then try every rule."""
    parser = setting_parser(__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    lm = EditableLM.from_pretrained(arguments.model).to(torch.device(arguments.device))
    forget, retain = split_facts(facts_of(arguments), arguments.forget, arguments.retain, arguments.seed)
    documents = retain_documents(read_texts(arguments.corpus, 100_000, "--corpus"), forget)
    evaluation = evaluation_batches(lm, forget, retain, read_texts(arguments.heldout, 500, "--heldout"))
    known = prepare(lm, forget, documents, arguments.layers, arguments.neutral, seed=arguments.seed, progress=True)
    trial = Trial(lm, arguments.layers, forget, evaluation, known)
    reachable = 100 * known.targets.original_lost.double().mean()
    print(
        f"{arguments.forget} facts, seed {arguments.seed}, layers {arguments.layers}: z* reachable {reachable:.0f} %\n"
    )
    print(f"| rule | {' | '.join(COLUMNS)} |\n|---|{'---|' * len(COLUMNS)}")
    print(row("before", evaluate(lm, evaluation)), flush=True)
    for name, rule in RULES.items():
        try:
            print(row(name, trial.figures(rule)), flush=True)
        except ValueError as error:
            print(f"| {name} | {error} |")


if __name__ == "__main__":
    main()
