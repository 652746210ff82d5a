"""Gradient descent on the ZeroUnlearn-GD objective: gap and seconds of several ways, compared with the exact solution.

python -m benchmarks.speed.descent --forget 50
"""

from dataclasses import dataclass

from torch import Tensor, autograd

from benchmarks.console import new_parser, table_head, table_row
from benchmarks.setting import WHOLE, corpus_documents, load_model, named_facts
from zu_lightning import (
    Request,
    RetainText,
    TargetOptions,
    ZeroUnlearnGD,
    layer_problem,
    prepare,
    retain_documents,
    split_facts,
)
from zu_lightning.editing.objective import Delta, DenseDelta, LayerObjective, WhitenedDelta
from zu_lightning.runtime.timing import Monitor


@dataclass(frozen=True)
class Descent:
    """The objective of a layer, over updates in a null space.

    Attributes:
        objective: What is minimized.
        null_space: Q, d_in x q.
        optimum: The smallest value.
    """

    objective: LayerObjective
    null_space: Tensor
    optimum: Tensor

    def run(self, delta: Delta, learning_rate: float | None, steps: int, tolerance: float = 0.0) -> tuple[int, float]:
        """Descend from zero until the gap is within ``tolerance``: how many steps that took, and the last gap."""
        weights = self.objective.weights
        delta.begin(self.objective.keys, self.null_space, weights)
        optimizer = delta.optimizer(learning_rate, weights)
        for step in range(steps + 1):
            loss = self.objective.terms(delta()).total
            gap = ((loss - self.optimum) / self.optimum).item()
            if gap <= tolerance or step == steps:
                break
            optimizer.zero_grad()
            autograd.backward(loss)
            optimizer.step()
        return step, gap


def main() -> None:
    """Prepare the problem of one layer, then solve it in every way."""
    parser = new_parser(__doc__, "model", "facts", "ids", "corpus", "neutral-target", "forget", "device")
    parser.set_defaults(forget=50)
    parser.add_argument("--layer", type=int, default=0, help="layer to edit, from 0 (default: %(default)s)")
    arguments = parser.parse_args()
    lm, layer, rule = load_model(arguments), arguments.layer, ZeroUnlearnGD()
    forget, _, _ = split_facts(named_facts(arguments), arguments.forget)
    request = Request(forget, RetainText(retain_documents(corpus_documents(arguments), forget), WHOLE))
    options = TargetOptions(arguments.neutral_target)
    preparation = prepare(lm, request, [layer], options)
    problem = rule.in_units(layer_problem(lm, request, layer, [layer], preparation, options))
    null_space, weight, monitor = rule.null_space(problem), lm.weight(layer), Monitor()
    objective = LayerObjective(weight, problem, rule.weights)

    with monitor.timed("exact"):
        update = objective.exact(null_space)
    descent = Descent(objective, null_space, objective.terms(update).total)
    print(f"{arguments.forget} facts, W {tuple(weight.shape)}, null space of {null_space.shape[1]} directions\n")
    print(table_head(("way", "steps", "gap", "seconds")))
    print(table_row(("exact", "", "0", f"{monitor.seconds['exact']:.3f}")))

    def descend(name: str, delta: Delta, learning_rate: float | None, steps: int, tolerance: float = 0.0) -> None:
        delta.to(lm.device)
        with monitor.timed(name):
            taken, gap = descent.run(delta, learning_rate, steps, tolerance)
        print(table_row((name, taken, f"{gap:.1e}", f"{monitor.seconds[name]:.3f}")), flush=True)

    for tolerance in (1e-6, 1e-10):
        name = f"whitened, to a gap of {tolerance:g}"
        descend(name, WhitenedDelta(len(weight), arguments.forget), None, 20, tolerance)
    for rate in (1e-3, 1e-2, 1e-1):
        descend(f"dense, Adam, learning rate {rate:g}", DenseDelta(*weight.shape), rate, 500)


if __name__ == "__main__":
    main()
