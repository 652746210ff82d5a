"""Work is shared so that any number of processes finds the same."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from zu_lightning.distributed import all_of, check_identical, own_share, process, summed


def shares(rank: int, folder: str) -> None:
    """What one of three processes takes, sums up, and says of tensors that agree or do not."""
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
    assert all_of(f"a{rank}", total.device) == [[97, 48], [97, 49], [97, 50]]
    Path(folder, f"{rank}.json").write_text(json.dumps([own, total.tolist(), verdict]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_shares_are_disjoint_and_their_sums_whole(tmp_path: Path) -> None:
    spawn(shares, (str(tmp_path),), nprocs=3)  # type: ignore[no-untyped-call]
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert sorted(item for own, _, _ in found for item in own) == list(range(5))
    assert [total for _, total, _ in found] == [[10.0, 5.0]] * 3
    assert all("the weight differs between processes (1 of 3" in verdict for _, _, verdict in found)


def test_one_process_takes_everything() -> None:
    assert process() == (0, 1)
    assert list(own_share("abc")) == ["a", "b", "c"]
    total = torch.tensor([1.0, 2.0])
    assert summed(total)[0] is total
    assert total.tolist() == [1.0, 2.0]
    check_identical("anything", torch.zeros(2))
    assert all_of("ab", total.device) == [[97, 98]]


@pytest.mark.parametrize(("rank", "taken"), [(0, [0, 3]), (1, [1, 4]), (2, [2])])
def test_every_process_takes_its_turn(rank: int, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zu_lightning.distributed.process", lambda: (rank, 3))
    assert list(own_share(range(5))) == taken


@pytest.mark.parametrize("differs", [False, True])
def test_a_tensor_that_differs_from_that_of_the_first_process_is_refused(
    differs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_first(tensor: torch.Tensor, src: int) -> None:
        tensor[0] += float(differs)

    monkeypatch.setattr("zu_lightning.distributed.process", lambda: (1, 2))
    monkeypatch.setattr(torch.distributed, "broadcast", of_the_first)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    weight = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"the weight differs .*1 of 2") if differs else nullcontext():
        check_identical("the weight", weight)
    assert weight.tolist() == [0.0, 0.0]
