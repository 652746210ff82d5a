"""Work is shared so that any number of processes finds the same."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.conftest import in_processes, random
from zu_lightning.runtime.distributed import (
    all_gather,
    all_gather_text,
    all_reduce,
    all_to_all,
    check_identical,
    process,
    rank_shard,
    shares,
)


def exchanged() -> dict[str, object]:
    """What one of three processes takes, sums up, and says of tensors that agree or do not."""
    own = list(rank_shard(range(5)))
    total = torch.tensor([float(sum(own)), float(len(own))])
    all_reduce(total)
    verdict = "same"
    try:
        check_identical("the weight", torch.full((2,), float(process()[0] == 2)))
    except RuntimeError as error:
        verdict = str(error)
    check_identical("the sum", total)
    characters = all_gather_text(f"a{process()[0]}", total.device)
    return {"own": own, "total": total.tolist(), "verdict": verdict, "characters": characters}


def test_shares_are_disjoint_and_their_sums_whole(tmp_path: Path) -> None:
    found = in_processes(3, exchanged, tmp_path)
    assert sorted(item for each in found for item in each["own"]) == list(range(5))
    assert [each["total"] for each in found] == [[10.0, 5.0]] * 3
    assert all("the weight differs between processes (1 of 3" in each["verdict"] for each in found)
    assert all(each["characters"] == [[97, 48], [97, 49], [97, 50]] for each in found)


BATCHES = [[4, 0], [6], [5, 1, 3], [2]]
"""Which facts are worked on together; of three processes the first has two of these batches."""


def held_of(count: int) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """The rows of this process's share of some facts, those of all shares in turn, and those of all facts."""
    batches = [[fact for fact in batch if fact < count] for batch in BATCHES]
    found = ((batch, ROWS[batch]) for batch in rank_shard(batches))
    own = all_to_all(found, ROWS[:0], count)
    return own, list(shares(own)), all_gather(own)


ROWS = random(7, 2, 3, seed=0)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("count", [7, 2, 0])
def test_each_process_holds_its_share_of_what_all_have_found(processes: int, count: int, tmp_path: Path) -> None:
    found = in_processes(processes, lambda: held_of(count), tmp_path)
    sizes = [len(own) for own, _, _ in found]
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(torch.cat([own for own, _, _ in found]), ROWS[:count])
    for _, in_turn, everything in found:
        assert [len(share) for share in in_turn] == sizes
        assert torch.equal(torch.cat(in_turn), ROWS[:count])
        assert torch.equal(everything, ROWS[:count])


def test_one_process_takes_everything() -> None:
    assert process() == (0, 1)
    assert list(rank_shard("abc")) == ["a", "b", "c"]
    total = torch.tensor([1.0, 2.0])
    assert all_reduce(total)[0] is total
    assert total.tolist() == [1.0, 2.0]
    check_identical("anything", torch.zeros(2))
    assert all_gather_text("ab", total.device) == [[97, 98]]


@pytest.mark.parametrize(("rank", "taken"), [(0, [0, 3]), (1, [1, 4]), (2, [2])])
def test_every_process_takes_its_turn(rank: int, taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zu_lightning.runtime.distributed.process", lambda: (rank, 3))
    assert list(rank_shard(range(5))) == taken


@pytest.mark.parametrize("differs", [False, True])
def test_a_tensor_that_differs_from_that_of_the_first_process_is_refused(
    differs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_the_first(tensor: torch.Tensor, src: int) -> None:
        tensor[0] += float(differs)

    monkeypatch.setattr("zu_lightning.runtime.distributed.process", lambda: (1, 2))
    monkeypatch.setattr(torch.distributed, "broadcast", of_the_first)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    weight = torch.zeros(2)
    with pytest.raises(RuntimeError, match=r"the weight differs .*1 of 2") if differs else nullcontext():
        check_identical("the weight", weight)
    assert weight.tolist() == [0.0, 0.0]
