"""What keeps others out of a project, and when a run is refused, without a run."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks import RecordRequest
from tests.ledger.conftest import Project, people
from zu_lightning import EditingModule, Fact, InputError, Request, RetainText
from zu_lightning.facts.request import History
from zu_lightning.ledger import locked


def set_up(history: History, forget: Sequence[Fact], *, continues: bool = False, **options: Any) -> RecordRequest:
    """The callback of a run that has read its data and begins; with options of its module."""
    trainer, module = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False), EditingModule(**options)
    trainer.state.fn = TrainerFn.FITTING
    request = Request(forget, RetainText([]), number=1, history=history)
    trainer.datamodule = SimpleNamespace(request=request, continues=continues)  # type: ignore[attr-defined]
    module.trainer = trainer
    callback = RecordRequest()
    callback.setup(trainer, module, "fit")
    return callback


def test_a_run_that_has_read_an_older_ledger_is_refused(project: Project) -> None:
    facts, history = people(2), project.ledger.history()
    set_up(history, facts[1:]).lock.close()
    project.add(facts[:1])
    for forget, continues in ((facts[1:], False), (facts[1:], True), (facts[:1], False)):
        with pytest.raises(InputError, match="another run has written into it"):
            set_up(history, forget, continues=continues)
    with set_up(history, facts[:1], continues=True).lock, pytest.raises(InputError, match="another process works"):
        locked(project.folder).__enter__()


def test_a_stand_in_is_no_model_of_a_project(project: Project) -> None:
    with pytest.raises(InputError, match="tiny is True: a project needs the model that it is about"):
        set_up(project.ledger.history(), people(1), tiny=True)
