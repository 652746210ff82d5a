"""Any number of processes gives the same weights and the same figures, however they were started."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing

from tests.conftest import ROOT
from zu_lightning.distributed import check_identical, own_share, summed

LAUNCHERS = {
    "one process": [sys.executable, "train.py", "{}"],
    "lightning": [sys.executable, "train.py", "{}", "--trainer.devices=2", "--trainer.strategy=ddp"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "train.py", "{}"],
    # --multi_gpu makes accelerate start several processes; it is trainer.accelerator that puts them on the CPU.
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2",
                   "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "train.py", "{}"],
}  # fmt: skip
PROCESSES = {"one process": 1, "lightning": 2, "torchrun": 3, "accelerate": 2}
FEWER_THAN_PROCESSES = ["--data.forget_num=2", "--data.retain_num=7", "--model.latents.facts_per_batch=1"]
MANY = ["--data.forget_num=50", "--data.retain_num=50", "--model.latents.steps=5"]
METHODS = {"closed form": [], "descent": ["--config=configs/gradient_descent.yaml"]}


def run(launcher: str, folder: Path, *arguments: str) -> Path:
    filled = [
        part
        for word in LAUNCHERS[launcher]
        for part in (["fit", "--config=configs/demo.yaml"] if word == "{}" else [word])
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*filled, *arguments, f"--trainer.default_root_dir={folder}", "--data.corpus_documents=300"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    started = re.findall(r"Starting with (\d+) processes", result.stderr)
    assert started == ([str(PROCESSES[launcher])] if PROCESSES[launcher] > 1 else [])
    return folder / "lightning_logs" / "version_0"


def check_the_same(several: Path, one: Path) -> None:
    """Edited weights to 1e-5 of their size, figures to the digits that the table shows."""
    name = "model.layers.0.mlp.down_proj.weight"
    weights = [load_file(folder / "model" / "model.safetensors")[name] for folder in (several, one)]
    assert (weights[0] - weights[1]).norm() <= 1e-5 * weights[1].norm()
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (several, one)]
    for when in ("before", "after"):
        shown = [{name: f"{value:.3f}" for name, value in found[when].items()} for found in figures]
        assert shown[0] == shown[1]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("one process", tmp_path_factory.mktemp("one"), *FEWER_THAN_PROCESSES)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "lightning", "torchrun"])
def test_every_launcher_gives_the_result_of_one_process(launcher: str, one_process: Path, tmp_path: Path) -> None:
    check_the_same(run(launcher, tmp_path, *FEWER_THAN_PROCESSES), one_process)


@pytest.mark.slow
def test_a_tiny_model_runs_on_several_processes(tmp_path: Path) -> None:
    folder = run(
        "torchrun", tmp_path, "--config=configs/qwen3.yaml", "--config=configs/tiny.yaml", "--model.layers=[1]"
    )
    assert (folder / "model" / "config.json").exists()
    assert not folder.with_name("version_1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
def test_one_two_and_three_processes_forget_fifty_facts_alike(method: str, tmp_path: Path) -> None:
    arguments = [*METHODS[method], *MANY]
    one = run("one process", tmp_path / "one", *arguments)
    for count, launcher in ((2, "lightning"), (3, "torchrun")):
        check_the_same(run(launcher, tmp_path / str(count), *arguments), one)


def shares(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    own = list(own_share(range(5)))
    total = torch.tensor([float(sum(own)), float(len(own))])
    summed(total)
    verdict = "same"
    try:
        check_identical("the weight", torch.full((2,), float(rank == 2)))
    except RuntimeError as error:
        verdict = str(error)
    check_identical("the sum", total)
    Path(folder, f"{rank}.json").write_text(json.dumps([own, total.tolist(), verdict]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_shares_are_disjoint_and_their_sums_whole(tmp_path: Path) -> None:
    multiprocessing.spawn(shares, (str(tmp_path),), nprocs=3)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert sorted(item for own, _, _ in found for item in own) == list(range(5))
    assert [total for _, total, _ in found] == [[10.0, 5.0]] * 3
    assert all("the weight differs between processes (1 of 3" in verdict for _, _, verdict in found)


def test_one_process_takes_everything() -> None:
    assert list(own_share("abc")) == ["a", "b", "c"]
    check_identical("anything", torch.zeros(2))
