"""What keeps others out of a project, and when a run is refused, without a run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import RecordRequest
from tests.conftest import in_processes, own_columns, random, random_problem
from tests.ledger.conftest import Project, people
from zu_lightning import EditingModule, Fact, InputError, Request, RetainText
from zu_lightning.editing.request import History
from zu_lightning.ledger import locked
from zu_lightning.runtime.distributed import all_reduce, process


class OneOfSeveral(SingleDeviceStrategy):
    """The strategy of a process of several that are there already."""

    @property
    def is_global_zero(self) -> bool:
        return process()[0] == 0

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        objects = [obj]
        if process()[1] > 1:
            torch.distributed.broadcast_object_list(objects, src)
        return objects[0]

    def reduce_boolean_decision(self, decision: bool, all: bool = True) -> bool:
        count = all_reduce(torch.tensor(int(decision)))[0].item()
        return count == process()[1] if all else count > 0


def quiet_trainer() -> Trainer:
    strategy = OneOfSeveral(torch.device("cpu"))
    return Trainer(accelerator="cpu", strategy=strategy, logger=False, enable_progress_bar=False)


def of_run(history: History, forget: Sequence[Fact], **options: Any) -> tuple[Trainer, EditingModule]:
    """The trainer of a run that has read its data, and its module with some options."""
    trainer, module = quiet_trainer(), EditingModule(**options)
    trainer.state.fn = TrainerFn.FITTING
    request = Request(forget, RetainText([]), number=1, history=history)
    trainer.datamodule = SimpleNamespace(request=request, continues_from=None)  # type: ignore[attr-defined]
    module.trainer = trainer
    module.connect(trainer.datamodule)  # type: ignore[attr-defined]
    return trainer, module


def set_up(history: History, forget: Sequence[Fact], *, continues: bool = False, **options: Any) -> RecordRequest:
    """The callback of a run that begins."""
    trainer, module = of_run(history, forget, **options)
    trainer.datamodule.continues_from = "last.ckpt" if continues else None  # type: ignore[attr-defined]
    callback = RecordRequest()
    callback.setup(trainer, module, "fit")
    return callback


def test_a_run_that_has_read_an_older_ledger_is_refused(project: Project) -> None:
    facts, history = people(2), project.ledger.history()
    set_up(history, facts[1:]).lock.close()
    project.add(facts[:1])
    for forget, continues in ((facts[1:], False), (facts[1:], True), (facts[:1], False)):
        with pytest.raises(InputError, match="another run has written to it"):
            set_up(history, forget, continues=continues)
    with (
        set_up(history, facts[:1], continues=True).lock,
        pytest.raises(InputError, match="another process is using"),
    ):
        locked(project.folder).__enter__()


def test_all_processes_stop_if_one_is_refused(project: Project, tmp_path: Path) -> None:
    facts, older = people(2), project.ledger.history()
    newer = project.add(facts[:1]).history()

    def said(history_of_second: History) -> str:
        try:
            set_up(history_of_second if process()[0] else newer, facts[1:]).lock.close()
        except InputError as error:
            return str(error)
        return "nothing"

    assert in_processes(2, lambda: said(newer), tmp_path / "both") == ["nothing"] * 2
    with locked(project.folder):
        alone = in_processes(2, lambda: said(newer), tmp_path / "locked")
    assert ["another process is using it" in text for text in alone] == [True] * 2
    one_is_late = in_processes(2, lambda: said(older), tmp_path / "older")
    assert ["another run has written to it" in text for text in one_is_late] == [True] * 2


def test_only_the_first_process_keeps_what_later_requests_need(project: Project, tmp_path: Path) -> None:
    _, problem = random_problem(facts=4)
    problem = replace(problem, deviations=random(9, 4, 3, seed=1))
    trainer, module = of_run(project.ledger.history(), people(4))

    def kept() -> dict[int, dict[str, torch.Tensor]]:
        RecordRequest().on_train_batch_start(trainer, module, own_columns(problem), 0)
        return module.run.kept

    first, second = in_processes(2, kept, tmp_path / "kept")
    assert {name: one.tolist() for name, one in first[0].items()} == {
        name: getattr(problem, name).tolist() for name in ("keys", "values", "deviations")
    }
    assert second == {}


def test_a_stand_in_is_no_model_of_a_project(project: Project) -> None:
    with pytest.raises(InputError, match="random_tiny_model is True: a project needs its own model"):
        set_up(project.ledger.history(), people(1), random_tiny_model=True)
