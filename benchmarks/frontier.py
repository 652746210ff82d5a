"""Every rule with a range of weights, on one model and one draw of facts, as a Markdown table.

python -m benchmarks.frontier --forget 10 --seed 0
"""

from benchmarks.console import new_parser, table_head, table_row
from benchmarks.setting import Trial, load_model
from zu_lightning import (
    AlphaEdit,
    Memit,
    Rome,
    Rule,
    TargetOptions,
    ZeroUnlearn,
    ZeroUnlearnGD,
    ZeroUnlearnSoft,
    evaluate,
)

RELEASE = ZeroUnlearn(scale_free=False, retain_weight=15000.0, forget_weight=50.0, ridge=1.0)
RULES: dict[str, Rule] = {
    "ZeroUnlearn, release's weights (15000, 50, 1)": RELEASE,
    **{f"ZeroUnlearn, retain {w:g}": ZeroUnlearn(retain_weight=w, ridge=w / 100) for w in (10, 3, 2, 1, 0.3, 0.1)},
    **{f"ZeroUnlearn-GD, threshold {t:g}": ZeroUnlearnGD(threshold=t) for t in (0.01, 0.03, 0.1, 0.15, 0.3, 1)},
    **{
        f"ZeroUnlearn-GD, threshold 0.03, zero {w:g}": ZeroUnlearnGD(threshold=0.03, zero_weight=w)
        for w in (100, 10000)
    },
    **{f"ZeroUnlearn-GD, threshold 0.03, ridge {w:g}": ZeroUnlearnGD(threshold=0.03, ridge=w) for w in (1, 10, 30)},
    **{f"soft, retain {w:g}": ZeroUnlearnSoft(retain_weight=w, ridge=w / 100) for w in (3, 1, 0.5, 0.2, 0.1)},
    "MEMIT, release's weight 15000": Memit(scale_free=False, retain_weight=15000.0),
    **{f"MEMIT, retain {w:g}": Memit(retain_weight=w) for w in (3, 1, 0.3, 0.1)},
    **{f"AlphaEdit, threshold {t:g}": AlphaEdit(threshold=t) for t in (0.1, 0.3, 1, 3)},
    "ROME": Rome(),
}
COLUMNS = ("efficacy", "generalization", "specificity", "retain", "perplexity")


def row(name: str, scores: dict[str, float]) -> str:
    """One line of the table."""
    return table_row([name, *(f"{scores.get(column, float('nan')):.4g}" for column in COLUMNS)])


def main() -> None:
    """Prepare once, then try every rule."""
    options = ("model", "facts", "ids", "corpus", "heldout", "neutral-target", "layers", "forget", "retain")
    arguments = new_parser(__doc__, *options, "seed", "device").parse_args()
    targets = TargetOptions(arguments.neutral_target)
    trial = Trial.drawn(load_model(arguments), arguments, arguments.seed, targets)
    preparation = trial.prepare(progress=True)
    reachable = 100 * preparation.targets.original_lost.double().mean()
    print(f"{arguments.forget} facts, seed {arguments.seed}, layers {arguments.layers}:")
    print(f"the neutral targets are reachable for {reachable:.0f} % of the facts\n")
    print(table_head(("rule", *COLUMNS)))
    print(row("before", evaluate(trial.lm, trial.evaluation)), flush=True)
    for name, rule in RULES.items():
        try:
            print(row(name, trial.scores(rule, preparation)), flush=True)
        except ValueError as error:
            print(table_row((name, error)))


if __name__ == "__main__":
    main()
