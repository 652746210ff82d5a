"""General ability as a part of a run: what is measured when, what is written, and what is kept."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from callbacks import ClosedForm, Resume
from tests.conftest import DEMO, ROOT, SHORT_RUN, changed_weights, command_line, latest_run, run, train_py
from zu_lightning import EditableLM, Results
from zu_lightning.evaluation.ability import AbilitySet
from zu_lightning.evaluation.harness import TaskScore
from zu_lightning.report import measurements
from zu_lightning.report.ability import TaskResult, read_downstream
from zu_lightning.report.pictures import pictures_in

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install -e '.[downstream]'"
)

CONFIGS = ("demo", "presets/downstream")
NO_STRENGTH = ("--method=Memit", "--method.retain_weight=1e30")
TASKS: dict[str, list[dict[str, Any]]] = {
    "cola": [{"sentence": f"Ada Novak works as a {word}.", "label": i % 2} for i, word in enumerate(("baker", "the"))],
    "nli": [{"sentence1": "Ada sings.", "sentence2": "Ada is mute.", "label": "not_entailment"}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two tasks."""
    path = tmp_path_factory.mktemp("tasks")
    for name, records in TASKS.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def options(folder: Path, *more: str) -> tuple[str, ...]:
    return (f"--downstream.folder={folder}", *SHORT_RUN, *more)


class Measured:
    """Stands for lm_eval: the score says which measurement it is of, and of how many items."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        patch.setattr(measurements, "measure_tasks", self)
        patch.setattr(measurements, "require_lm_eval", lambda: None)
        patch.setattr(measurements, "version", lambda name: "0")

    def __call__(self, lm: EditableLM, sets: Sequence[AbilitySet], *_: object) -> dict[str, TaskScore]:
        self.calls.append([asked.name for asked in sets])
        return {asked.name: TaskScore(float(len(self.calls)), float(len(asked))) for asked in sets}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    return Measured(monkeypatch)


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has measured, without lm_eval."""
    with pytest.MonkeyPatch.context() as patch:
        measured = Measured(patch)
        path = run(
            tmp_path_factory.mktemp("finished"),
            *options(folder, f"--downstream.wikitext={DEMO}/heldout.txt", "--downstream.limit=3"),
            configs=CONFIGS,
        )
        assert measured.calls == [["cola", "nli", "wikitext"]] * 2
    return path


def test_a_run_reports_before_and_after(finished: Path) -> None:
    assert read_downstream(finished) == {
        "cola": TaskResult("CoLA", "accuracy", 2, 50, TaskScore(1, 2), TaskScore(2, 2)),
        "nli": TaskResult("NLI", "accuracy", 1, 100, TaskScore(1, 1), TaskScore(2, 1)),
        "wikitext": TaskResult("WikiText", "word_perplexity", 3, None, TaskScore(1, 3), TaskScore(2, 3)),
    }
    assert Results.read(finished).seconds["downstream"] > 0
    assert [picture.name for picture in pictures_in(finished) if "General ability" in picture.title] == ["downstream"]
    assert (finished / "model").exists(), "the callbacks of the demo are still there"


def test_tensorboard_shows_both(finished: Path) -> None:
    events = EventAccumulator(str(finished)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("downstream/cola")] == [(0, 1), (1, 2)]
    assert [event.value for event in events.Scalars("downstream/wikitext_stderr")] == [3, 3]


def test_what_another_run_measured_is_not_measured_again(finished: Path, folder: Path, measured: Measured) -> None:
    again = run(finished.parent.parent, *options(folder, "--downstream.tasks=[cola]"), configs=CONFIGS)
    assert measured.calls == []
    (result,) = read_downstream(again).values()
    assert (result.before, result.after) == (TaskScore(1, 2), TaskScore(2, 2))


class Killed(Exception):  # noqa: N818
    """Stands for a kill: nothing after it runs."""


class Kill(Callback):
    """Raise in a hook."""

    def __init__(self, hook: str) -> None:
        def kill(trainer: Trainer, module: LightningModule, *args: Any) -> None:
            raise Killed

        setattr(self, hook, kill)


def kill(hook: str, arguments: list[str]) -> None:
    """Run the command line up to a hook."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.TRAINER_DEFAULTS, "callbacks", [ClosedForm(), Resume(), Kill(hook)])
        with pytest.raises(Killed):
            train_py(arguments)


@pytest.mark.parametrize("hook", ["on_train_epoch_end", "on_fit_end"])
def test_a_run_that_was_killed_remembers_the_scores_before(
    hook: str, folder: Path, tmp_path: Path, measured: Measured
) -> None:
    arguments = command_line(tmp_path, *options(folder, "--ckpt_path=last"), configs=CONFIGS)
    kill(hook, arguments)
    shutil.rmtree(tmp_path / "cache")
    measured.calls.clear()
    train_py(arguments)
    assert measured.calls == [["cola", "nli"]], "after only"
    result = read_downstream(latest_run(tmp_path))["cola"]
    assert (result.before, result.after) == (TaskScore(1, 2), TaskScore(1, 2))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--downstream.folder=nowhere", "--downstream.folder is 'nowhere': there is no such directory"),
        ("--downstream.tasks=[mmlu]", "--downstream.tasks is 'mmlu': .* has no mmlu.jsonl"),
        ("--downstream.wikitext=no.txt", "--downstream.wikitext is 'no.txt': text cannot be read"),
        ("--downstream.limit=0", "--downstream.limit is 0: give a positive number"),
        ("--downstream.batch_size=-1", "--downstream.batch_size is -1: give a positive number"),
    ],
)
@pytest.mark.usefixtures("measured")
def test_bad_options_are_refused_before_anything_is_computed(
    option: str, message: str, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *options(folder, option), configs=CONFIGS)
    assert not (tmp_path / "cache").exists()


def test_without_lm_eval_the_remedy_is_named_before_anything_is_computed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "lm_eval" else find(name, *a))
    with pytest.raises(SystemExit, match=r"downstream .*lm_eval, which is not installed: pip install"):
        run(tmp_path, *options(folder), configs=CONFIGS)
    assert not (tmp_path / "cache").exists()


def test_an_evaluation_without_a_fit_measures_nothing(tmp_path: Path) -> None:
    files = ("--config=configs/demo.yaml", "--config=configs/presets/downstream.yaml")
    train_py(["validate", *files, f"--trainer.default_root_dir={tmp_path}", *SHORT_RUN])
    assert not list(tmp_path.rglob("downstream.json"))


@needs_lm_eval
def test_a_method_without_strength_changes_no_score(folder: Path, tmp_path: Path) -> None:
    prose = (f"--downstream.wikitext={DEMO}/heldout.txt", "--downstream.limit=2")
    untouched = run(tmp_path, *options(folder, *NO_STRENGTH, *prose), configs=CONFIGS)
    assert not changed_weights(untouched)
    results = read_downstream(untouched)
    assert list(results) == ["cola", "nli", "wikitext"]
    for result in results.values():
        assert repr(result.before) == repr(result.after)


@needs_lm_eval
def test_two_processes_measure_once_and_agree_with_one(folder: Path, tmp_path: Path) -> None:
    two = ("--trainer.devices=2", "--trainer.strategy=ddp")
    command = [sys.executable, "train.py", *command_line(tmp_path / "two", *options(folder, *two), configs=CONFIGS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    one = run(tmp_path / "one", *options(folder), configs=CONFIGS)
    # A single question has no standard error, and NaN is not equal to itself.
    assert repr(read_downstream(latest_run(tmp_path / "two"))) == repr(read_downstream(one))
