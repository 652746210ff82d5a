"""On a GPU the results are those on the CPU: `pytest -m gpu` where there is one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from tests.conftest import DEMO, latest_run, random_problem, run
from zu_lightning import (
    AlphaEdit,
    EditableLM,
    EditingMethod,
    Erase,
    LatentOptions,
    Memit,
    ReadingOptions,
    Request,
    Results,
    RetainText,
    Rome,
    ZeroUnlearn,
    ZeroUnlearnGD,
    ZeroUnlearnSoft,
    read_facts,
    read_texts,
    split_facts,
    unlearn,
)

pytestmark = pytest.mark.gpu

METHODS = [AlphaEdit(), Erase(), Memit(), Rome(), ZeroUnlearn(), ZeroUnlearnGD(threshold=0.5), ZeroUnlearnSoft()]
PROCESSES = 2


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_solution_in_float64_is_that_of_the_cpu(method: EditingMethod) -> None:
    weight, problem = random_problem()
    on_gpu: dict[str, Any] = {name: value.cuda() for name, value in vars(problem).items() if torch.is_tensor(value)}
    expected = method(weight, problem).dense()
    found = method(weight.cuda(), replace(problem, **on_gpu)).dense()
    assert found.dtype == torch.float64
    assert (found.cpu() - expected).norm() <= 1e-9 * expected.norm()


def test_a_run_has_the_scores_of_one_on_the_cpu(tmp_path: Path) -> None:
    here = Results.read(run(tmp_path / "cpu"))
    there = Results.read(run(tmp_path / "gpu", "--trainer.accelerator=gpu"))
    assert there.before == pytest.approx(here.before, abs=1e-3)
    for name in ("efficacy", "generalization", "specificity", "retain"):
        assert there.after[name] == pytest.approx(here.after[name], abs=1.0)


def test_weights_in_bfloat16_are_edited_and_exported(tmp_path: Path) -> None:
    options = ("--trainer.accelerator=gpu", "--model.dtype=bfloat16")
    results = Results.read(run(tmp_path, *options))
    assert results.before["efficacy"] > 80
    assert results.after["efficacy"] <= 10
    assert results.after["retain"] > 80
    assert (latest_run(tmp_path) / "model" / "model.safetensors").exists()


def edited_weight() -> torch.Tensor:
    """The demo's first projection without six facts, found on the GPU by this process and those beside it."""
    lm = EditableLM.from_pretrained(DEMO / "model").to(torch.device("cuda"))
    facts = read_facts(DEMO / "facts.jsonl")
    forget, _, protect = split_facts(facts, 6, 0, 20)
    text = RetainText(read_texts(str(DEMO / "corpus.txt"), 200), ReadingOptions())
    request = Request(forget, text, protect, known=facts)
    latents = LatentOptions(contexts=1, templates=2, average_over_prompts=True, steps=5, facts_per_batch=2)
    unlearn(lm, request, Erase(latents=latents))
    return lm.weight(0).detach().cpu()


def share_the_gpu(rank: int, folder: str) -> None:
    """One of several processes that find the same weight."""
    where: dict[str, Any] = {"init_method": f"file://{folder}/store", "rank": rank, "world_size": PROCESSES}
    torch.distributed.init_process_group("gloo", **where)  # NCCL wants a GPU for each process
    torch.save(edited_weight(), Path(folder, f"{rank}.pt"))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_on_one_gpu_give_the_weights_of_one(tmp_path: Path) -> None:
    spawn(share_the_gpu, (str(tmp_path),), nprocs=PROCESSES)  # type: ignore[no-untyped-call]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    assert torch.equal(first, second)
    expected = edited_weight()
    assert (first - expected).norm() <= 1e-5 * expected.norm()
