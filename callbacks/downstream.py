"""General ability before and after a fit: accuracy on downstream tasks, and the perplexity of prose."""

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from callbacks.afterwards import Afterwards
from callbacks.dashboard import show_picture
from callbacks.run_folder import run_folder, sees_unedited_model, unlearn_module
from zu_lightning import digest
from zu_lightning.evaluation.ability import AbilitySet, read_prose, read_questions
from zu_lightning.evaluation.harness import TaskScore, measure, require_lm_eval
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.report.ability import TaskResult, downstream_table, task_results, write_downstream
from zu_lightning.report.ability_plots import draw_downstream
from zu_lightning.runtime.errors import require_positive

log = logging.getLogger(__name__)


class Downstream(Afterwards):
    """Measure what else the model can do, and write ``downstream.json`` and a picture of it.

    The first process measures, and the others wait for it. What it found before is kept in ``data.cache`` and in the
    checkpoint, so that neither another run nor a continued one measures it again.

    Args:
        folder: Directory with any of ``sst2.jsonl``, ``mmlu.jsonl``, ``mrpc.jsonl``, ``cola.jsonl``, ``rte.jsonl``, and
            ``nli.jsonl``.
        tasks: Names of tasks, such as ``sst2``; by default all that have a file in the folder.
        limit: Maximum number of questions of each task, and of documents of ``wikitext``: the first ones.
        wikitext: Text file for the perplexity per word.
        batch_size: Texts that the model reads at a time.
    """

    def __init__(
        self,
        folder: str,
        tasks: list[str] | None = None,
        limit: int = 200,
        wikitext: str | None = None,
        batch_size: int = 8,
    ) -> None:
        require_positive("limit", limit)
        require_positive("batch_size", batch_size)
        self.folder, self.tasks, self.limit, self.wikitext, self.batch_size = folder, tasks, limit, wikitext, batch_size
        self.sets: dict[str, AbilitySet] = {}
        """What is asked, by a name that other questions would not have."""
        self.after: dict[str, TaskScore] = {}
        """Scores of the edited model, by the same names."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read what is asked before anything is computed."""
        unlearn_module(pl_module)
        self.after = {}
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        require_lm_eval()
        asked: list[AbilitySet] = [*read_questions(self.folder, self.tasks, self.limit)]
        if self.wikitext is not None:
            asked.append(read_prose(self.wikitext, self.limit))
        self.sets = {f"{one.name}-{digest(one)}": one for one in asked}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the unedited model, after Lightning's sanity check has measured it."""
        if not sees_unedited_model(trainer):
            return
        module = unlearn_module(pl_module)
        with module.monitor.timed("downstream"):
            cache = module.cache or open_cache(None, module.lm)
            parts = (self.batch_size, version("lm_eval"))
            found = cache.each("downstream", list(self.sets), lambda names: self._tensors(trainer, names), *parts)
        module.run.downstream = {
            name: {part: value.item() for part, value in score.items()} for name, score in found.items()
        }

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the edited model, and report both."""
        module, folder = unlearn_module(pl_module), run_folder(trainer)
        with module.monitor.timed("downstream"):
            self.after = self._measured(trainer, list(self.sets))
        before = {name: TaskScore(**score) for name, score in module.run.downstream.items() if name in self.sets}
        if len(before) < len(self.sets):
            log.warning(
                "not every task was measured before: keep Lightning's sanity check, and continue a run with the "
                "questions that it was started with."
            )
        results = task_results(self.sets, before, self.after)
        if folder is not None:
            self._report(trainer, results, folder)

    def _measured(self, trainer: Trainer, names: Sequence[str]) -> dict[str, TaskScore]:
        """Scores of the model as it is; the first process measures."""
        found: dict[str, TaskScore] = {}
        if trainer.is_global_zero:
            module = unlearn_module(trainer.lightning_module)
            scores = measure(module.lm, [self.sets[name] for name in names], self.batch_size, module.monitor)
            found = {name: scores[self.sets[name].name] for name in names}
        return trainer.strategy.broadcast(found)

    def _tensors(self, trainer: Trainer, names: Sequence[str]) -> dict[str, dict[str, Tensor]]:
        """The same, as the cache keeps it."""
        return {
            name: {part: torch.tensor(value, dtype=torch.float64) for part, value in vars(score).items()}
            for name, score in self._measured(trainer, names).items()
        }

    @staticmethod
    def _report(trainer: Trainer, results: Mapping[str, TaskResult], folder: Path) -> None:
        path = write_downstream(results, folder)
        show_picture(trainer, folder, draw_downstream(results))
        for logger in trainer.loggers:
            for step, when in enumerate(("before", "after")):
                scores = {f"downstream/{name}": getattr(result, when) for name, result in results.items()}
                known = {name: score for name, score in scores.items() if score is not None}
                logger.log_metrics({name: score.value for name, score in known.items()}, step=step)
                logger.log_metrics({f"{name}_stderr": score.stderr for name, score in known.items()}, step=step)
        log.info("%s\ngeneral ability in %s", downstream_table(results), path)
