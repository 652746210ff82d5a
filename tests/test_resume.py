"""A run that is killed goes on from its last finished layer and ends where an uninterrupted one does."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

import train
from callbacks import Resume
from callbacks.resume import checkpoint_path
from tests.conftest import DEMO, ROOT
from zu_lightning import UnlearnModule

SMALL = [
    "fit", "--config=configs/demo.yaml", "--model.layers=[0,1]", "--data.forget_num=3", "--data.retain_num=5",
    "--data.corpus_documents=200", "--data.heldout_documents=20", "--ckpt_path=last",
]  # fmt: skip

Outcome = tuple[bytes, dict[str, Any]]


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def outcome(root: Path) -> Outcome:
    """Weights and metrics of the latest run under a folder."""
    runs = sorted((root / "lightning_logs").iterdir(), key=lambda folder: int(folder.name.split("_")[1]))
    metrics: dict[str, Any] = json.loads((runs[-1] / "metrics.json").read_text())
    return (runs[-1] / "model" / "model.safetensors").read_bytes(), metrics


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        train.main([*SMALL, f"--trainer.default_root_dir={root}"])
    return outcome(root)


class Killed(Exception):  # noqa: N818
    """Stands for a kill: nothing after it runs."""


class KillAt(Callback):
    """Raise in a hook when so many layers are done."""

    def __init__(self, hook: str, layers_done: int) -> None:
        def kill(trainer: Trainer, module: LightningModule, *args: Any) -> None:
            if isinstance(module, UnlearnModule) and len(module.layer_figures) == layers_done:
                raise Killed

        setattr(self, hook, kill)


KILLS = {
    "before the first edit": (KillAt("on_train_batch_start", 0), 0),
    "after the first edit, before its evaluation": (KillAt("on_validation_start", 1), 0),
    "before the second edit": (KillAt("on_train_batch_start", 1), 1),
    "before the export": (KillAt("on_fit_end", 2), 2),
}


def kill(moment: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(train.TRAINER_DEFAULTS, "callbacks", [Resume(), KILLS[moment][0]])
        with pytest.raises(Killed):
            train.main([*SMALL, f"--trainer.default_root_dir={root}"])


@pytest.mark.parametrize("moment", sorted(KILLS))
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(
    moment: str, uninterrupted: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill(moment, tmp_path, monkeypatch)
    assert len(torch.load(checkpoint_path(str(tmp_path)))["unlearning"]["updates"]) == KILLS[moment][1]
    module = sys.modules["zu_lightning.methods.unlearning"]
    monkeypatch.setattr(module, "neutral_targets", lambda *_, **__: pytest.fail("targets are known"))
    train.main([*SMALL, f"--trainer.default_root_dir={tmp_path}"])
    weights, metrics = outcome(tmp_path)
    assert weights == uninterrupted[0]
    for figures in ("before", "after", "layers"):
        assert metrics[figures] == uninterrupted[1][figures]
    assert not checkpoint_path(str(tmp_path)).exists()


def test_a_checkpoint_holds_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill("before the export", tmp_path, monkeypatch)
    path = checkpoint_path(str(tmp_path))
    updates = torch.load(path)["unlearning"]["updates"].values()
    factors = sum(factor.nbytes for update in updates for factor in update.values())
    assert path.stat().st_size - factors < 0.01 * (DEMO / "model" / "model.safetensors").stat().st_size


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill("before the second edit", tmp_path, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        train.main([*SMALL, f"--trainer.default_root_dir={tmp_path}", "--model.neutral_target=nothing"])
    assert "written by a run with another model.neutral_target ('unknown') than this one" in str(stopped.value.code)


def test_an_unfinished_run_can_be_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill("before the second edit", tmp_path, monkeypatch)
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(UnlearnModule, "on_validation_epoch_end", lambda self: seen.append(self.layer_figures))
    train.main(["validate", *SMALL[1:], f"--trainer.default_root_dir={tmp_path}"])
    assert list(seen[0]) == [0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_sigkill_at_a_random_moment_loses_nothing(seed: int, uninterrupted: Outcome, tmp_path: Path) -> None:
    command = [sys.executable, "train.py", *SMALL, f"--trainer.default_root_dir={tmp_path}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    time.sleep(random.Random(seed).uniform(4, 12))
    process.kill()
    process.wait()
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=100)
    weights, metrics = outcome(tmp_path)
    assert weights == uninterrupted[0]
    assert metrics["after"] == uninterrupted[1]["after"]
    for path in tmp_path.glob("lightning_logs/*/metrics.json"):
        assert json.loads(path.read_text())["before"] == metrics["before"]
