"""Any number of processes gives the same weights and the same figures, however they were started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from tests.conftest import ROOT
from zu_lightning.distributed import check_identical, own_share, summed

LAUNCHERS = {
    "lightning": [sys.executable, "train.py", "{}", "--trainer.devices=2", "--trainer.strategy=ddp"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", "train.py", "{}"],
    "accelerate": [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2",
                   "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "train.py", "{}"],
}  # fmt: skip
FEW = ["--data.forget_num=2", "--data.retain_num=7", "--data.corpus_documents=100", "--model.latents.facts_per_batch=1"]


def run(command: list[str], folder: Path, *arguments: str) -> Path:
    filled = [part for word in command for part in (["fit", "--config=configs/demo.yaml"] if word == "{}" else [word])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*filled, f"--trainer.default_root_dir={folder}", *FEW, *arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "lightning_logs" / "version_0"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run([sys.executable, "train.py", "{}"], tmp_path_factory.mktemp("one"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", sorted(LAUNCHERS))
def test_any_number_of_processes_gives_one_result(launcher: str, one_process: Path, tmp_path: Path) -> None:
    several = run(LAUNCHERS[launcher], tmp_path)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (several, one_process)]
    assert weights[0] == weights[1]
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (several, one_process)]
    for when in ("before", "after"):
        assert figures[0][when] == pytest.approx(figures[1][when], rel=1e-12)


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
