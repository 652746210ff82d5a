"""A run that is killed continues after its last finished layer and ends where an uninterrupted one does."""

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file
from transformers import PreTrainedModel

import train
from callbacks import ClosedForm, Measure, Resume
from tests.application.test_processes import assert_same, launch
from tests.conftest import DEMO, ROOT, SHORT_RUN, command_line, latest_run, run, train_py
from zu_lightning import EditableLM, EditingModule, Request, Results, RunState
from zu_lightning.cli import command
from zu_lightning.modules.outputs import checkpoint_path

TWO_LAYERS = ("--model.layers=[0,1]", "--ckpt_path=last", *SHORT_RUN)
BASE = DEMO / "model" / "model.safetensors"


class KillAt(Callback):
    """Send this process a signal in a hook when so many layers are done."""

    def __init__(self, hook: str, layers_done: int, number: signal.Signals) -> None:
        def kill(trainer: Trainer, module: LightningModule, *args: Any) -> None:
            if isinstance(module, EditingModule) and len(module.run.edits) == layers_done:
                signal.raise_signal(number)

        setattr(self, hook, kill)


class Norms:
    """Measure the weights of the edited layers; reported as scores of previous requests."""

    name = "previous"

    def applies(self, request: Request) -> bool:
        return True

    def check(self) -> None:
        pass

    def measure(self, lm: EditableLM, request: Request, *, layers: Sequence[int], **_: object) -> Any:
        return {0: {str(layer): lm.weight(layer).double().norm().item() for layer in layers}}


class Kill(NamedTuple):
    """A moment at which a run is killed: in which hook, after how many edits, and how.

    Attributes:
        saved: How many edits the checkpoint then holds; ``None`` if there is no checkpoint.
    """

    hook: str
    layers_done: int
    number: signal.Signals
    saved: int | None


KILLS = {
    "in the evaluation before": Kill("on_validation_batch_start", 0, signal.SIGINT, None),
    "before the first edit": Kill("on_train_batch_start", 0, signal.SIGTERM, 0),
    "before the second edit": Kill("on_train_batch_start", 1, signal.SIGINT, 1),
    "in the last evaluation": Kill("on_validation_batch_start", 2, signal.SIGTERM, 1),
    "before the export": Kill("on_fit_end", 2, signal.SIGINT, 2),
}


def kill(moment: str, root: Path) -> tuple[object, list[str]]:
    """Run the command line until a moment; the exit code, and what is said at the end."""
    said: list[str] = []
    # A process in the background may have been started with it ignored, and Lightning ignores it from the first one on.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.TRAINER_DEFAULTS, "callbacks", [ClosedForm(), Resume(), KillAt(*KILLS[moment][:3])])
        patch.setattr(command.log, "error", lambda message, *rest: said.append(message % rest))
        with pytest.raises(SystemExit) as stopped:
            train_py(command_line(root, *TWO_LAYERS))
    signal.signal(signal.SIGINT, handler)
    return stopped.value.code, said


def checkpoint_in(root: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(checkpoint_path(str(root)), weights_only=True)
    return checkpoint


def state_in(root: Path) -> RunState:
    return RunState.from_state_dict(checkpoint_in(root)["run"], torch.device("cpu"))


def weights_of(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


class KilledRun(NamedTuple):
    """A run that was killed at every moment, one after the other.

    Attributes:
        checkpoints: For each moment, a copy of what the kill left.
        endings: For each moment, the exit code, and what was said at the end.
        root: Where it ran.
        folder: The folder of its last part, which came to the end.
    """

    checkpoints: dict[str, Path]
    endings: dict[str, tuple[object, list[str]]]
    root: Path
    folder: Path


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> KilledRun:
    root, copies, endings = tmp_path_factory.mktemp("killed"), {}, {}
    with pytest.MonkeyPatch.context() as patch:
        for moment in KILLS:
            endings[moment] = kill(moment, root)
            copies[moment] = shutil.copytree(root, tmp_path_factory.mktemp("copy") / "root")
            if checkpoint_path(str(root)).exists():
                optimized_again = "zu_lightning.editing.preparation.neutral_targets"
                patch.setattr(optimized_again, lambda *_, **__: pytest.fail("targets are known"))
        patch.setitem(train.TRAINER_DEFAULTS, "callbacks", [ClosedForm(), Measure([Norms()]), Resume()])
        return KilledRun(copies, endings, root, run(root, *TWO_LAYERS))


@pytest.fixture
def half_done(killed_run: KilledRun, tmp_path: Path) -> Path:
    """Where a run was killed between its two edits."""
    return shutil.copytree(killed_run.checkpoints["before the second edit"], tmp_path / "half_done")


@pytest.mark.parametrize("moment", KILLS)
def test_a_kill_loses_no_layer_that_was_evaluated(moment: str, killed_run: KilledRun) -> None:
    root = killed_run.checkpoints[moment]
    saved = len(state_in(root).edits) if checkpoint_path(str(root)).exists() else None
    assert saved == KILLS[moment].saved


@pytest.mark.parametrize("moment", KILLS)
def test_a_signal_ends_in_one_line_that_says_how_to_continue_if_that_is_possible(
    moment: str, killed_run: KilledRun
) -> None:
    number, saved = KILLS[moment].number, KILLS[moment].saved
    said = {signal.SIGINT: "interrupted (Ctrl-C).", signal.SIGTERM: "terminated (SIGTERM)."}[number]
    rest = "" if saved is None else " The same command with --ckpt_path last continues it."
    assert killed_run.endings[moment] == (128 + number, [f"train.py: {said}{rest}"])


def test_figures_of_a_part_are_not_reported(killed_run: KilledRun) -> None:
    assert not list(killed_run.checkpoints["in the last evaluation"].rglob("metrics.json"))
    assert not list(killed_run.root.rglob("*.partial"))


def test_a_run_that_was_killed_again_and_again_ends_where_an_uninterrupted_one_does(
    killed_run: KilledRun, two_layers_run: Path
) -> None:
    assert weights_of(killed_run.folder) == weights_of(two_layers_run)
    results, uninterrupted = Results.read(killed_run.folder), Results.read(two_layers_run)
    assert results.before == uninterrupted.before
    assert results.after == uninterrupted.after
    assert results.layers == uninterrupted.layers
    assert results.targets == uninterrupted.targets
    assert not checkpoint_path(str(killed_run.root)).exists()


def test_a_run_that_was_killed_before_its_export_has_its_finished_model_looked_at(killed_run: KilledRun) -> None:
    lm = EditableLM.from_pretrained(killed_run.folder / "model", dtype="float32")
    looked_at = Results.read(killed_run.folder).earlier["after"]["0"]
    assert looked_at == {str(layer): pytest.approx(lm.weight(layer).norm().item(), rel=1e-3) for layer in (0, 1)}
    unedited = EditableLM.from_pretrained(DEMO / "model", dtype="float32")
    assert all(abs(looked_at[str(layer)] / unedited.weight(layer).norm() - 1) > 1e-3 for layer in (0, 1))


def test_a_checkpoint_holds_the_state_and_no_model(half_done: Path, two_layers_run: Path) -> None:
    checkpoint, state = checkpoint_in(half_done), state_in(half_done)
    assert checkpoint["state_dict"] == {}
    assert checkpoint["optimizer_states"] == []
    assert state.before == Results.read(two_layers_run).before
    assert state.targets is not None
    assert state.layers_left(0, [0, 1]) == [1]
    assert set(state.measured["completions"]) == {"before"}
    assert {"moments", "targets"} < state.seconds.keys()
    factors = sum(edit.update.left.nbytes + edit.update.right.nbytes for edit in state.edits.values())
    assert checkpoint_path(str(half_done)).stat().st_size - factors < 0.01 * BASE.stat().st_size


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--model.neutral_target=nothing", "neutral_target ('unknown') than this one ('nothing')"),
        ("--model.layers=[0,2]", "layers ([0, 1]) than this one ([0, 2])"),
        ("--method=Memit", "method ('Erase') than this one ('Memit')"),
        ("--data.seed=1", "data.path, or another option that decides which facts are drawn ("),
        ("--data.reading.corpus_documents=61", "data.corpus ("),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_the_setting_that_differs(
    option: str, name: str, half_done: Path
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(half_done, *TWO_LAYERS, option))
    assert f"--ckpt_path is '{checkpoint_path(str(half_done))}': it was written by a run with another {name}" in str(
        stopped.value.code
    )
    assert checkpoint_path(str(half_done)).exists()


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_other_weights_under_the_same_path_are_noticed(
    command: str, half_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = EditableLM.from_pretrained

    def changed(*args: Any, **options: Any) -> EditableLM:
        lm = load(*args, **options)
        lm.set_weight(1, 2 * lm.weight(1))
        return lm

    monkeypatch.setattr(EditableLM, "from_pretrained", changed)
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(half_done, *TWO_LAYERS, command=command))
    assert str(stopped.value.code).startswith(
        f"train.py: error: --ckpt_path is '{checkpoint_path(str(half_done))}': it was written by a run with another "
        "digest of the weights at model_name_or_path ("
    )
    assert checkpoint_path(str(half_done)).exists()


def test_a_full_disk_is_told_with_what_to_do(
    killed_run: KilledRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(killed_run.checkpoints["before the export"], tmp_path / "root")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(root, *TWO_LAYERS))
    folder = latest_run(root)
    assert stopped.value.code == (
        f"train.py: error: {folder / 'model'} cannot be written: the disk is full. Free some space in {folder}. The "
        "same command with --ckpt_path last continues it."
    )
    assert checkpoint_path(str(root)).exists()
    assert not list(root.rglob("*.partial"))


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.5.0", "epoch": 0, "global_step": 0}, other)
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, *SHORT_RUN, f"--ckpt_path={other}"))
    assert "this is not a checkpoint of an unlearning run" in str(stopped.value.code)


def test_an_unfinished_run_can_be_evaluated(half_done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def look(module: EditingModule) -> None:
        assert list(module.run.edits) == [(0, 0)]
        seen.extend(module.lm.weight(layer).clone() for layer in (0, 1))

    monkeypatch.setattr(EditingModule, "on_validation_epoch_end", look)
    # How the run was to continue does not matter.
    train_py(command_line(half_done, *TWO_LAYERS, "--method=ZeroUnlearnGD", command="validate"))
    base = load_file(BASE)
    first, second = (base[f"model.layers.{layer}.mlp.down_proj.weight"].float() for layer in (0, 1))
    (edit,) = state_in(half_done).edits.values()
    assert torch.allclose(seen[0] - first, edit.update.dense().float(), atol=1e-6)
    assert not torch.equal(seen[0], first)
    assert torch.equal(seen[1], second)


def test_a_run_that_was_stopped_early_keeps_its_checkpoint_and_exports_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = run(tmp_path, *SHORT_RUN, "--method=ZeroUnlearnGD", "--method.solve=descent", "--trainer.max_steps=1")
    assert checkpoint_path(str(tmp_path)).exists()
    assert not (stopped / "model").exists()
    assert "stopped early: nothing is exported" in caplog.text


@pytest.mark.slow
def test_any_number_of_processes_continues_what_another_began(half_done: Path, two_layers_run: Path) -> None:
    assert_same(launch("torchrun", half_done, *TWO_LAYERS), two_layers_run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sigkill_at_a_random_moment_loses_nothing(seed: int, two_layers_run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *command_line(tmp_path, *TWO_LAYERS)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
    time.sleep(random.Random(seed).uniform(4, 12))
    process.kill()
    process.wait()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=100)
    folder = latest_run(tmp_path)
    assert weights_of(folder) == weights_of(two_layers_run)
    results = Results.read(folder)
    assert results.after == Results.read(two_layers_run).after
    for path in tmp_path.glob("lightning_logs/*/metrics.json"):
        assert Results.read(path.parent).before == results.before
