"""Measurements: what a run, or a notebook, measures of a model before and after an edit.

Attacks are in :mod:`zu_lightning.attacks.measurement`.
"""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from zu_lightning.editing.request import Request
from zu_lightning.evaluation.ability import AbilitySet, read_prose, read_questions
from zu_lightning.evaluation.harness import TaskScore, measure_tasks, require_lm_eval
from zu_lightning.evaluation.queries import QueryTables
from zu_lightning.evaluation.scores import EvaluationBatch, evaluate, evaluation_batches
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.unknown_subjects import unknown_subjects_to_measure
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.report.ability import downstream_table, draw_downstream, task_results, write_downstream
from zu_lightning.report.pictures import Drawing
from zu_lightning.report.representation_plots import draw_run
from zu_lightning.runtime.distributed import all_reduce, process, rank_shard
from zu_lightning.runtime.errors import InputError, require_positive
from zu_lightning.runtime.files import digest
from zu_lightning.runtime.timing import Monitor
from zu_lightning.solvers import LowRankUpdate
from zu_lightning.tracing.representations import groups_of, projection_outputs, representation_map

log = logging.getLogger(__name__)

SAMPLES = 5
"""Number of forgotten prompts, and of kept ones, whose completions are shown."""
LEAK_FACTS = 100
"""Maximum number of facts whose answers are compared with those for made-up names: the first of those to forget."""
COMPLETION_TOKENS = 12
"""Number of tokens in a sample completion."""


class Measurement(Protocol):
    """Measures something of a model.

    Attributes:
        name: Key of the results in the state of a run, and of the seconds that they took.
    """

    name: str

    def applies(self, request: Request) -> bool:
        """Whether there is anything to measure."""
        return True

    def check(self) -> None:
        """Refuse bad options before anything is computed."""
        return

    def measure(
        self,
        lm: EditableLM,
        request: Request,
        *,
        layers: Sequence[int],
        updates: Mapping[int, LowRankUpdate] | None,
        monitor: Monitor,
    ) -> Any:
        """Results as plain containers of tensors, numbers, and texts; to be called in all processes.

        Args:
            lm: The model, which is left as it is.
            request: What is, or will be, forgotten and kept.
            layers: Layers that may have been edited.
            updates: What was added to weights, by layer; ``None`` if it is not known as low-rank factors.
            monitor: Shows progress.
        """


class Report(NamedTuple):
    """How results before and after are shown: a picture, numbers by step and name, and a line for the log."""

    drawing: Drawing
    metrics: Sequence[Mapping[str, float]]
    line: str


@runtime_checkable
class ReportedMeasurement(Protocol):
    """A measurement with files of its own."""

    def report(self, before: Any, after: Any, request: Request, folder: Path) -> Report | None:
        """Write results into a run's folder; ``before`` is ``None`` if the unedited model was not measured."""


class Scores(Measurement):
    """Scores of the request; in a run, they are those of Lightning's validation, on the same batches."""

    name = "scores"

    def measure(
        self, lm: EditableLM, request: Request, *, before: QueryTables | None = None, **_: object
    ) -> dict[str, float]:
        """Scores by name, as in ``metrics.json``; ``before`` is that of :func:`zu_lightning.evaluate`."""
        return evaluate(lm, rank_shard(request_batches(lm, request)), before)


def request_batches(lm: EditableLM, request: Request) -> list[EvaluationBatch]:
    """Queries of a request for each metric, and held-out text for the perplexity."""
    facts = (request.forget, request.retain, request.heldout)
    texts = (*request.text.documents, *request.text.corpus, *request.heldout)
    names = unknown_subjects_to_measure(request.forget[:LEAK_FACTS], request.relations, request.seed, texts)
    others = (request.protected_others, request.same_subject)
    return evaluation_batches(lm, *facts, request.text.reading, *others, names)


class Completions(Measurement):
    """Greedy completions of some prompts, made by the first process."""

    name = "completions"

    def measure(self, lm: EditableLM, request: Request, **_: object) -> list[str]:
        """A completion for each of :func:`samples`."""
        return [complete(lm, fact).strip() for fact in samples(request)] if process()[0] == 0 else []


def samples(request: Request) -> list[Fact]:
    """Facts whose prompts are completed: some to forget, then some to keep."""
    return [*request.forget[:SAMPLES], *request.retain[:SAMPLES]]


def complete(lm: EditableLM, fact: Fact) -> str:
    """Greedy completion of a fact's prompt."""
    return lm.generate(fact.prompt, COMPLETION_TOKENS, chat=fact.chat)


class PreviousRequests(Measurement):
    """Scores of the facts of a project's previous requests whose texts were kept."""

    name = "previous"

    def applies(self, request: Request) -> bool:
        """Only in a project."""
        return request.history is not None

    def measure(self, lm: EditableLM, request: Request, **_: object) -> dict[int, dict[str, float]]:
        """Scores by number of the request."""
        return {
            one.number: evaluate(lm, rank_shard(evaluation_batches(lm, one.facts, [], [])))
            for one in request.previous
            if one.facts
        }


class Representations(Measurement):
    """Outputs of the edited projections for facts; reported as ``representations.json`` and a picture.

    Args:
        facts: Maximum number of facts per group: forgotten, protected, and others. By default nothing is measured.
    """

    name = "representations"

    def __init__(self, facts: int | None = None) -> None:
        if facts is not None and facts < 1:
            raise InputError("facts", facts, "give a positive number.", "representations")
        self.facts = facts

    def applies(self, request: Request) -> bool:
        """Whether there is anything to measure."""
        return self.facts is not None

    def _groups(self, request: Request) -> dict[str, list[Fact]]:
        return groups_of(request, self.facts or 0)

    def measure(
        self, lm: EditableLM, request: Request, *, layers: Sequence[int] = (), **_: object
    ) -> dict[int, Tensor]:
        """For each layer facts x d_out, float32, on the CPU."""
        facts = [fact for group in self._groups(request).values() for fact in group]
        return {
            layer: states.float().cpu()
            for layer, states in projection_outputs(lm, facts, layers, request.text.reading.batch_tokens).items()
        }

    def report(self, before: Any, after: dict[int, Tensor], request: Request, folder: Path) -> Report | None:
        """Write ``representations.json``, and draw how facts have moved."""
        if {layer: states.shape for layer, states in (before or {}).items()} != {
            layer: states.shape for layer, states in after.items()
        }:
            log.warning(
                "There is no picture of representations: the unedited model was not read for these facts (at most %d "
                "per group). Keep Lightning's sanity check, and resume with the same options.", self.facts,
            )  # fmt: skip
            return None
        found = representation_map(self._groups(request), before, after)
        found.write(folder)
        moved = (f"{name[:-6]} {value:.2f}" for name, value in found.numbers.items() if name.endswith("_moved"))
        line = f"representations: movement of facts, relative to the spread of their group: {', '.join(moved)}"
        return Report(draw_run(found), [{f"representations/{k}": v for k, v in found.numbers.items()}], line)


class Downstream(Measurement):
    """General ability: accuracy on downstream tasks and perplexity of prose, by lm_eval; ``downstream.json``.

    Args:
        folder: Directory with any of ``sst2.jsonl``, ``mmlu.jsonl``, ``mrpc.jsonl``, ``cola.jsonl``, ``rte.jsonl``, and
            ``nli.jsonl``. Without it nothing is measured.
        tasks: Names of tasks, such as ``sst2``; by default all that have a file in the folder.
        limit: Maximum number of questions of each task, and of documents of ``wikitext``: the first ones.
        wikitext: Text file for the perplexity per word.
        batch_size: Number of texts per forward pass.
    """

    name = "downstream"

    def __init__(
        self,
        folder: str | None = None,
        tasks: list[str] | None = None,
        limit: int = 200,
        wikitext: str | None = None,
        batch_size: int = 8,
    ) -> None:
        require_positive("limit", limit)
        require_positive("batch_size", batch_size)
        self.folder, self.tasks, self.limit, self.wikitext, self.batch_size = folder, tasks, limit, wikitext, batch_size
        self.sets: dict[str, AbilitySet] = {}
        """Questions and prose, by a name that holds a digest of them."""

    def applies(self, request: Request) -> bool:
        """Whether there is anything to measure."""
        return self.folder is not None

    def check(self) -> None:
        """Read the questions."""
        require_lm_eval()
        sets: list[AbilitySet] = [*read_questions(str(self.folder), self.tasks, self.limit)]
        if self.wikitext is not None:
            sets.append(read_prose(self.wikitext, self.limit))
        self.sets = {f"{one.name}-{digest(one)}": one for one in sets}

    def measure(
        self,
        lm: EditableLM,
        request: Request,
        *,
        layers: Sequence[int] = (),
        monitor: Monitor | None = None,
        **_: object,
    ) -> dict[str, dict[str, float]]:
        """``value`` and ``stderr`` of each task, by name in ``sets``; the first process measures, the others wait."""

        def compute(names: list[str]) -> dict[str, dict[str, Tensor]]:
            table = torch.zeros(len(names), 2, dtype=torch.float64, device=lm.device)
            if process()[0] == 0:
                scores = measure_tasks(lm, [self.sets[name] for name in names], self.batch_size, monitor)
                rows = [scores[self.sets[name].name] for name in names]
                table += torch.tensor([(row.value, row.stderr) for row in rows], dtype=torch.float64)
            all_reduce(table)
            return {name: {"value": row[0], "stderr": row[1]} for name, row in zip(names, table, strict=True)}

        if not self.sets:
            self.check()
        cache = open_cache(request.cache, lm, layers)
        found = cache.each("downstream", list(self.sets), compute, self.batch_size, version("lm_eval"))
        return {name: {part: value.item() for part, value in score.items()} for name, score in found.items()}

    def report(self, before: Any, after: dict[str, dict[str, float]], request: Request, folder: Path) -> Report:
        """Write ``downstream.json``, and draw the scores before and after."""
        scores = [
            {name: TaskScore(**score) for name, score in (found or {}).items() if name in self.sets}
            for found in (before, after)
        ]
        if len(scores[0]) < len(self.sets):
            log.warning(
                "Not every task was measured before the edit: keep Lightning's sanity check, and resume with the same "
                "questions."
            )
        results = task_results(self.sets, *scores)
        path = write_downstream(results, folder)
        metrics = [
            {f"downstream/{self.sets[name].name}{suffix}": value for name, score in found.items()
             for suffix, value in (("", score.value), ("_stderr", score.stderr))}
            for found in scores
        ]  # fmt: skip
        return Report(draw_downstream(results), metrics, f"{downstream_table(results)}\ngeneral ability in {path}")
