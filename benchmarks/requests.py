r"""Five requests of 10 facts, one after the other, beside one of 50 and beside naive repetition, as Markdown tables.

Naive repetition gives each request to the model that the one before has exported, and tells it nothing else.

python -m benchmarks.requests --seed 1 --folder outputs/requests \
    --ledger-options "--method.retain_weight=0.03 --method.reweighting_iterations=3"
"""

import argparse
import json
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.setup import draw_facts, fit, new_parser, table_head, table_row
from zu_lightning import EditableLM, Fact, ReadingOptions, evaluation_batches, read_texts
from zu_lightning.editing.request import about_subjects_of
from zu_lightning.evaluation.intervals import shares
from zu_lightning.evaluation.queries import fact_sums
from zu_lightning.evaluation.scores import evaluate_queries
from zu_lightning.ledger.files import write_facts

SCORES = ("efficacy", "generalization", "efficacy_probability", "retain", "same_subject", "perplexity")
"""Columns of the table of whole models."""

State = tuple[dict[str, float], torch.Tensor]
"""Scores of a model, and for each fact the share of its questions, in all words, that are answered."""


class Comparison:
    """The facts of a seed, cut into requests, and the models that come of them.

    Args:
        arguments: Of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.folder = Path(arguments.folder) / f"seed_{arguments.seed}"
        forget, self.retain, others = draw_facts(arguments)
        self.forget, size = forget, len(forget) // arguments.requests
        self.requests = [forget[i : i + size] for i in range(0, len(forget), size)]
        self.same_subject = about_subjects_of(forget, [fact for fact in others if fact not in self.retain])
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for number, facts in enumerate([self.forget, *self.requests]):
            write_facts(self.folder / f"{number}.jsonl", facts)

    def fit(self, name: str, number: int, *options: str) -> Path:
        """Forget the facts of a request (0: of all of them); the exported model."""
        root = self.folder / name
        return fit(
            root, f"--config={self.arguments.config}", "--attacks.preset=none",
            f"--data.forget_path={self.folder / f'{number}.jsonl'}",
            f"--data.retain_ids={json.dumps([fact.id for fact in self.retain])}",
            f"--data.cache={Path(self.arguments.folder) / 'cache'}", *options,
        ) / "model"  # fmt: skip

    def state(self, model: str | Path) -> State:
        """What a model says about all facts."""
        lm = EditableLM.from_pretrained(model)
        prose = read_texts(self.arguments.heldout, ReadingOptions().heldout_documents, "--heldout")
        batches = evaluation_batches(lm, self.forget, self.retain, prose, same_subject=self.same_subject)
        scores, queries = evaluate_queries(lm, batches)
        sums = fact_sums(queries)
        return scores, shares(sums["efficacy"] + sums["generalization"])

    def over_time(self, name: str, options: Callable[[Path | None], Sequence[str]]) -> list[State]:
        """The states after each of the requests."""
        states, model = [], None
        for number in range(1, len(self.requests) + 1):
            model = self.fit(name, number, *options(model))
            states.append(self.state(model))
        return states


def over_requests(name: str, states: Sequence[State], requests: Sequence[Sequence[Fact]]) -> str:
    """A table: after each request, percent of the questions about each request's facts that are answered."""
    size = len(requests[0])
    numbers = range(1, len(requests) + 1)
    rows = [table_head([f"{name}: after request", *(f"facts of {number}" for number in numbers)])]
    for number, (_, answered) in zip(numbers, states, strict=True):
        means = [100 * answered[i : i + size].mean().item() for i in range(0, size * len(requests), size)]
        rows.append(table_row([number, *(f"{mean:.0f}" for mean in means)]))
    return "\n".join(rows)


def came_back(states: Sequence[State], size: int) -> float:
    """Percent of the facts of all requests but the last that are answered more at the end than after their request."""
    last = states[-1][1]
    own = torch.cat([state[1][i * size : (i + 1) * size] for i, state in enumerate(states[:-1])])
    return 100 * (last[: len(own)] > own).double().mean().item()


def main() -> None:
    """Compare the three ways."""
    parser = new_parser(__doc__, "model", "facts", "ids", "heldout", "retain", "seed")
    parser.add_argument(
        "--config", default="configs/demo.yaml", help="configuration of the runs (default: %(default)s)"
    )
    parser.add_argument("--forget", type=int, default=50, help="number of facts of all requests (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=5, help="number of requests (default: %(default)s)")
    parser.add_argument("--folder", default="outputs/requests", help="where runs write (default: %(default)s)")
    parser.add_argument("--options", default="", help="more options of train.py, in one text")
    parser.add_argument("--ledger-options", default="", help="more of them for the runs with a ledger")
    arguments = parser.parse_args()
    comparison, more = Comparison(arguments), shlex.split(arguments.options)
    own = [*more, *shlex.split(arguments.ledger_options)]
    size = len(comparison.requests[0])
    project = f"--data.project={comparison.folder / 'project'}"
    ways = {
        "with a ledger": comparison.over_time("ledger", lambda _: [project, *own]),
        "naive repetition": comparison.over_time(
            "naive", lambda model: [*([f"--model.model_name_or_path={model}"] if model else []), *more]
        ),
    }
    whole = {"before": comparison.state(arguments.model)}
    whole |= {"one request": comparison.state(comparison.fit("whole", 0, *more))}
    whole |= {name: states[-1] for name, states in ways.items()}
    print(f"\n{arguments.forget} facts in {arguments.requests} requests, seed {arguments.seed}\n")
    for name, states in ways.items():
        print(over_requests(name, states, comparison.requests), end="\n\n")
    print(table_head(("", *SCORES, "came back")))
    for name, (scores, _) in whole.items():
        back = f"{came_back(ways[name], size):.0f}" if name in ways else ""
        print(table_row([name, *(f"{scores[score]:.4g}" for score in SCORES), back]))


if __name__ == "__main__":
    main()
