"""Any number of processes gives the same weights and the same scores, however they were started."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import ROOT, SHORT_RUN, command_line, latest_run, run
from zu_lightning import Results
from zu_lightning.report.terminal import results_table

LAUNCHERS = {
    "lightning": (2, ["train.py"], ["--trainer.devices=2", "--trainer.strategy=ddp"]),
    "torchrun": (3, ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "train.py"], []),
    # --multi_gpu makes accelerate start several processes; it is trainer.accelerator that puts them on the CPU.
    "accelerate": (
        2,
        ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
         "--mixed_precision=no", "--dynamo_backend=no", "train.py"],
        [],
    ),
}  # fmt: skip
"""How many processes a launcher starts, and the words before and after the arguments of ``train.py``."""

FEWER_FACTS_THAN_PROCESSES = (*SHORT_RUN, "--method.latents.facts_per_batch=1")
MANY_FACTS = (
    "--data.forget_num=50", "--data.retain_num=50", "--method.latents.steps=5", "--data.reading.corpus_documents=300",
)  # fmt: skip
METHODS: dict[str, tuple[str, ...]] = {"closed form": (), "descent": ("methods/gradient_descent",)}
SIZES = {
    "fifty facts": (("demo",), MANY_FACTS),
    "more facts than a key has entries": (
        ("demo", "qwen3", "tiny"),
        ("--data.forget_num=80", "--model.layers=[0]", "--method.latents.steps=3", "--model.dtype=float32"),
    ),
}  # fmt: skip
"""Configurations and options."""
WEIGHT = "model.layers.0.mlp.down_proj.weight"


def launch(launcher: str, root: Path, *options: str, configs: tuple[str, ...] = ("demo",)) -> Path:
    """Run the command line in several processes; the folder of the run."""
    count, before, after = LAUNCHERS[launcher]
    command = [sys.executable, *before, *command_line(root, *options, configs=configs), *after]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert re.findall(r"running on cpu in (\d+) processes", result.stderr) == [str(count)]
    return latest_run(root)


def assert_same(several: Path, one: Path) -> None:
    """Edited weights to 1e-5 of their size, and scores to the digits that the table shows."""
    found, expected = (load_file(folder / "model" / "model.safetensors")[WEIGHT] for folder in (several, one))
    assert (found - expected).norm() <= 1e-5 * expected.norm()
    results, reference = Results.read(several), Results.read(one)
    assert results_table(results) == results_table(reference)
    for when in ("before", "after"):
        shown = [{name: f"{score:.3f}" for name, score in getattr(r, when).items()} for r in (results, reference)]
        assert shown[0] == shown[1]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("one"), *FEWER_FACTS_THAN_PROCESSES)


@pytest.mark.parametrize(
    "launcher", ["lightning", *(pytest.param(name, marks=pytest.mark.slow) for name in ("accelerate", "torchrun"))]
)
def test_every_launcher_gives_the_result_of_one_process(launcher: str, one_process: Path, tmp_path: Path) -> None:
    assert_same(launch(launcher, tmp_path, *FEWER_FACTS_THAN_PROCESSES), one_process)


@pytest.mark.slow
def test_a_gradient_method_gives_the_result_of_one_process(tmp_path: Path) -> None:
    options = (
        "--data.forget_num=5", "--data.retain_num=10", "--data.reading.corpus_documents=60",
        "--data.reading.heldout_documents=3", "--model.training.epochs=2", "--model.training.batch_size=4",
    )  # fmt: skip
    configs = ("demo", "methods/npo")  # the last step has fewer facts than processes
    three = launch("torchrun", tmp_path / "three", *options, configs=configs)
    assert_same(three, run(tmp_path / "one", *options, configs=configs))


@pytest.mark.slow
def test_a_tiny_model_runs_in_several_processes(tmp_path: Path) -> None:
    folder = launch("torchrun", tmp_path, "--model.layers=[1]", configs=("demo", "qwen3", "tiny"))
    assert list(Results.read(folder).layers) == [1]
    assert (folder / "model" / "config.json").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["version_0"]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_one_two_and_three_processes_forget_alike(method: str, size: str, tmp_path: Path) -> None:
    configs, options = (*SIZES[size][0], *METHODS[method]), SIZES[size][1]
    one = run(tmp_path / "one", *options, configs=configs)
    for launcher in ("lightning", "torchrun"):
        assert_same(launch(launcher, tmp_path / launcher, *options, configs=configs), one)


@pytest.mark.slow
def test_processes_agree_on_what_another_run_has_left_in_the_cache(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = (*SHORT_RUN, "--model.layers=[0,1]", "--method=ZeroUnlearn", f"--data.cache={cache}")
    cold = launch("lightning", tmp_path / "cold", *options)
    written = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
    warm = launch("lightning", tmp_path / "warm", *options)
    assert {name.partition("-")[0] for name in written} >= {"before", "targets", "values", "moments", "sums"}
    assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == written
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (cold, warm)]
    assert weights[0] == weights[1]
