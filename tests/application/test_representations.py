"""The picture of representations in a run: what is written, and what it says of methods that edit and that train."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from callbacks import ClosedForm, Resume
from tests.application.test_processes import launch
from tests.conftest import SHORT_RUN, command_line, latest_run, run, train_py
from zu_lightning.report.pictures import pictures_in
from zu_lightning.tracing.representations import RepresentationMap

CONFIGS = ("demo", "presets/representations")
TWO_LAYERS = (*SHORT_RUN, "--model.layers=[0,1]")


class KilledError(Exception):
    """Stands for a kill: nothing after it runs."""


class KillBetween(Callback):
    """Stop a run after its first layer."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Instead of a kill."""
        if trainer.current_epoch == 1:
            raise KilledError


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("picture"), *TWO_LAYERS, configs=CONFIGS)


def assert_alike(found: RepresentationMap, expected: RepresentationMap) -> None:
    assert (found.facts, found.groups) == (expected.facts, expected.groups)
    assert found.numbers == pytest.approx(expected.numbers, rel=1e-4, abs=1e-6)


def test_a_run_shows_what_its_edit_has_moved(picture_run: Path) -> None:
    found = RepresentationMap.read(picture_run)
    assert [at.layer for at in found.layers] == [0, 1]
    assert {group: found.groups.count(group) for group in found.groups} == {"forget": 2, "kept": 3, "unseen": 3}
    shifts = found.layers[0].shifts
    assert (shifts["forget"].moved or 0) > 10 * (shifts["kept"].moved or 0) > 0, "the method was told of what to keep"
    (picture,) = [picture for picture in pictures_in(picture_run) if picture.name == "representations"]
    assert "layer 1, forget: facts moved" in picture.description
    assert (picture_run / "model").is_dir(), "the callbacks of the configuration are still there"


def test_tensorboard_has_the_picture_and_the_numbers(picture_run: Path) -> None:
    events = EventAccumulator(str(picture_run)).Reload()
    assert "pictures/representations" in events.Tags()["images"]
    for name, value in RepresentationMap.read(picture_run).numbers.items():
        (event,) = events.Scalars(f"representations/{name}")
        assert event.value == pytest.approx(value, rel=1e-5)


def test_a_run_that_was_killed_still_knows_what_was_before(picture_run: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.TRAINER_DEFAULTS, "callbacks", [ClosedForm(), Resume(), KillBetween()])
        with pytest.raises(KilledError):
            train_py(command_line(tmp_path, *TWO_LAYERS, configs=CONFIGS))
    assert not (latest_run(tmp_path) / "representations.json").exists()
    resumed = run(tmp_path, *TWO_LAYERS, "--ckpt_path=last", configs=CONFIGS)
    assert_alike(RepresentationMap.read(resumed), RepresentationMap.read(picture_run))


@pytest.mark.parametrize("weights", ["all", "lora"])
def test_a_gradient_method_has_a_picture_too(weights: str, tmp_path: Path) -> None:
    options = (
        "--data.forget_num=2", "--data.retain_num=3", "--data.reading.corpus_documents=60",
        "--data.reading.heldout_documents=3", "--method.training.epochs=3", f"--method.weights={weights}",
    )  # fmt: skip
    folder = run(tmp_path, *options, configs=("demo", "methods/npo", "presets/representations"))
    (at,) = RepresentationMap.read(folder).layers
    assert list(at.shifts) == ["forget", "unseen"], "the method was told of no facts to keep"
    assert (at.shifts["forget"].moved or 0) > 0


@pytest.mark.slow
def test_two_processes_find_the_same(picture_run: Path, tmp_path: Path) -> None:
    folder = launch("lightning", tmp_path, *TWO_LAYERS, configs=CONFIGS)
    assert_alike(RepresentationMap.read(folder), RepresentationMap.read(picture_run))
