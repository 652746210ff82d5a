"""Facts are taught to a model that does not know them, and nothing else changes much."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ExportTaught, Resume
from data import TeachDataModule
from data.world import World
from tests.application.test_processes import launch
from tests.conftest import DEMO, SHORT_RUN, changed_weights, run, write_records
from zu_lightning import InputError, ReadingOptions, Results, TeachModule, read_facts
from zu_lightning.modules.evaluation import EvaluationModule
from zu_lightning.modules.outputs import checkpoint_path

pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # trained without dropout, as it is used

EPOCHS = 25


class Killed(Callback):
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt


def two_people(folder: Path) -> Path:
    """Facts about people whom the demo model has never met."""
    return write_records(folder, *World(people=2, unlisted=0, seed=50).facts())


def texts_of_demo(folder: Path) -> list[str]:
    """Options for the facts in a folder and the demo's text."""
    path = folder / "records.jsonl"
    return [f"--data.path={path}", f"--data.corpus={DEMO / 'corpus.txt'}", f"--data.heldout={DEMO / 'heldout.txt'}"]


def short_run(folder: Path) -> list[str]:
    """Options of ``configs/teach.yaml`` for two epochs on the demo."""
    two_people(folder)
    return [
        f"--model.model_name_or_path={DEMO / 'model'}", *texts_of_demo(folder), "--data.reading.heldout_documents=3",
        "--trainer.max_epochs=2", "--trainer.callbacks.folder=null",
    ]  # fmt: skip


def teach(root: Path, *callbacks: Callback, resume: bool = False, **options: Any) -> TeachModule:
    """Teach the demo model facts about two people."""
    module = TeachModule(str(DEMO / "model"), **{"peak_learning_rate": 3e-3, "warmup_steps": 1} | options)
    data = TeachDataModule(
        str(two_people(root)), str(DEMO / "corpus.txt"), str(DEMO / "heldout.txt"), batch_size=18, retain_length=32,
        reading=ReadingOptions(heldout_documents=20),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, max_epochs=EPOCHS, default_root_dir=root, num_sanity_val_steps=-1, logger=False,
        reload_dataloaders_every_n_epochs=1, use_distributed_sampler=False, enable_model_summary=False,
        enable_progress_bar=False, check_val_every_n_epoch=1000, callbacks=[*callbacks, Resume()],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=str(checkpoint_path(str(root))) if resume else None)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("taught")


@pytest.fixture(scope="module")
def taught(root: Path) -> TeachModule:
    return teach(root, ExportTaught())


def test_what_was_unknown_is_known_and_other_text_stays_as_probable(taught: TeachModule) -> None:
    assert taught.before["efficacy"] < 10
    assert taught.after["efficacy"] == taught.after["generalization"] == 100
    assert taught.after["held_out"] > taught.before["held_out"] + 30
    assert taught.after["perplexity"] < 1.05 * taught.before["perplexity"]


def test_it_ends_once_enough_is_known(taught: TeachModule) -> None:
    assert 1 < taught.trainer.current_epoch < EPOCHS


def test_the_model_before_is_gold_for_the_exported_one(taught: TeachModule, root: Path, tmp_path: Path) -> None:
    folder = run(
        tmp_path, *SHORT_RUN, f"--model.model_name_or_path={root / 'model'}", "--model.layers=[0]",
        *texts_of_demo(root), "--attacks.preset=quick", f"--attacks.gold={DEMO / 'model'}", configs=("taught",),
    )  # fmt: skip
    results = Results.read(folder)
    assert results.before["efficacy"] == 100
    assert results.attacks["leak"]["gold"] < 0.5 < results.attacks["leak"]["base"]
    assert results.verdict


def test_a_killed_run_continues_with_what_it_has_learned(taught: TeachModule, root: Path, tmp_path: Path) -> None:
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        teach(tmp_path, Killed())
    checkpoint = torch.load(checkpoint_path(str(tmp_path)))
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    with pytest.raises(InputError, match="another kl_weight"):
        teach(tmp_path, resume=True, kl_weight=1.0)
    resumed = teach(tmp_path, ExportTaught(), resume=True)
    weights = [load_file(folder / "model" / "model.safetensors") for folder in (root, tmp_path)]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert (resumed.before, resumed.after) == (taught.before, taught.after)


def test_all_weights_can_be_taught(tmp_path: Path) -> None:
    module = teach(tmp_path, ExportTaught(), adapter=None, peak_learning_rate=3e-4)
    assert module.after["efficacy"] == 100
    assert module.after["perplexity"] < 1.05 * module.before["perplexity"]


def test_the_configuration_teaches_and_logs_scores_before_and_after(tmp_path: Path) -> None:
    folder = run(tmp_path, *short_run(tmp_path), configs=("teach",))
    board = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in board.Scalars("val/efficacy")] == [0, board.Scalars("train/loss")[-1].step]
    changed = changed_weights(folder)
    assert len(changed) == 7 * 3
    assert all("_proj." in name for name in changed)


@pytest.mark.slow
def test_two_processes_teach_what_one_does(tmp_path: Path) -> None:
    options = (*short_run(tmp_path), "--data.batch_size=7")  # the last step has fewer statements
    folders = [
        launch("lightning", tmp_path / "two", *options, configs=("teach",)),
        run(tmp_path / "one", *options, configs=("teach",)),
    ]
    two, one = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert all((two[name] - weight).norm() <= 1e-4 * weight.norm() for name, weight in one.items())


def test_bad_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="enough"):
        TeachModule(enough=0)
    with pytest.raises(InputError, match="batch_size"):
        TeachDataModule(batch_size=0)
    data = TeachDataModule(str(two_people(tmp_path)), str(tmp_path / "corpus.txt"), str(DEMO / "heldout.txt"))
    (tmp_path / "corpus.txt").write_text(f"{read_facts(tmp_path / 'records.jsonl')[0].subject} is here.\n")
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(InputError, match="every document names a subject"):
        trainer.fit(TeachModule(), data)
    with pytest.raises(InputError, match="reads data for a TeachModule"):
        trainer.validate(EvaluationModule(), data)
