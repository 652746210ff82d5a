"""Batches of similar length, and batches that shrink to what memory holds."""

from collections.abc import Iterable, Sequence
from itertools import combinations, pairwise

import pytest
import torch

from zu_lightning.lm.batching import PADDED, alike, batches, even_batches, retry_with_smaller_batch
from zu_lightning.lm.tokens import TokenizedText

LENGTHS = [3, 17, 4, 30, 5, 5, 16, 2, 31, 9, 3, 3]


def texts(lengths: list[int]) -> list[TokenizedText]:
    return [TokenizedText(ids=[7] * length, lookup=0, answer=length) for length in lengths]


@pytest.mark.parametrize("batch_tokens", [1, 10, 35, 1000])
def test_a_batch_holds_no_more_tokens_than_allowed_padding_included(batch_tokens: int) -> None:
    found = list(batches(texts(LENGTHS), batch_tokens))
    assert sorted(i for batch in found for i in batch) == list(range(len(LENGTHS)))
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(LENGTHS[i] for i in batch) <= batch_tokens
    if batch_tokens == 1:
        assert all(len(batch) == 1 for batch in found)
    if batch_tokens == 1000:
        assert len(found) == 1


def test_texts_of_similar_length_share_a_batch() -> None:
    in_order = [LENGTHS[i] for batch in batches(texts(LENGTHS), 20) for i in batch]
    assert in_order == sorted(LENGTHS)


def test_no_texts_give_no_batches() -> None:
    assert list(batches([], 10)) == []
    assert list(even_batches([], 10)) == []


@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_even_batches_pad_little_and_are_no_larger_than_asked_for(size: int) -> None:
    found = list(even_batches(LENGTHS, size))
    assert sorted(i for batch in found for i in batch) == list(range(len(LENGTHS)))
    for batch in found:
        assert 1 <= len(batch) <= size
        assert max(LENGTHS[i] for i in batch) <= PADDED * min(LENGTHS[i] for i in batch)


def test_even_batches_of_one_length_differ_by_one_at_most() -> None:
    sizes = [len(batch) for batch in even_batches([8] * 17, 5)]
    assert len(sizes) == 4  # 5, 5, 5, 2 would leave the last process with little to do
    assert max(sizes) - min(sizes) <= 1


class Memory:
    """Work on indices for which memory suffices for so many at a time."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.tried: list[int] = []

    def __call__(self, share: list[int]) -> list[int]:
        self.tried.append(len(share))
        if len(share) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return [10 * i for i in share]


def test_batches_that_fit_are_left_as_they_are() -> None:
    work = Memory(fits=4)
    shares = [[0, 1, 2, 3], [4], [5, 6]]
    assert list(retry_with_smaller_batch(work, shares, "Work")) == [
        (share, [10 * i for i in share]) for share in shares
    ]
    assert work.tried == [4, 1, 2]


@pytest.mark.parametrize("fits", [1, 3, 7])
def test_a_batch_that_does_not_fit_is_halved_and_so_are_all_later_ones(fits: int) -> None:
    work = Memory(fits)
    shares = [[3, 1, 2, 0, 4, 5, 6, 7], [8], [10, 9, 11, 12, 13, 14, 15]]
    done = list(retry_with_smaller_batch(work, shares, "Work"))
    assert [i for share, _ in done for i in share] == [i for share in shares for i in share]
    assert all(result == [10 * i for i in share] for share, result in done)
    failed = [size for size in work.tried if size > fits]
    assert failed == [8, 4, 2][: len(failed)]  # what does not fit is not tried again
    assert max(len(share) for share, _ in done) == 8 // 2 ** len(failed)


def test_a_user_is_told_what_was_halved(caplog: pytest.LogCaptureFixture) -> None:
    list(retry_with_smaller_batch(Memory(fits=2), [[0, 1, 2, 3]], "Neutral targets"))
    assert "Neutral targets: not enough memory for 4 facts at a time; trying 2" in caplog.text


def test_a_batch_of_one_that_does_not_fit_is_an_error() -> None:
    work = Memory(fits=0)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        list(retry_with_smaller_batch(work, [[0, 1, 2, 3]], "Work"))
    assert work.tried == [4, 2, 1]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    tried: list[int] = []

    def broken(share: list[int]) -> None:
        tried.append(len(share))
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        list(retry_with_smaller_batch(broken, [[0, 1, 2, 3]], "Work"))
    assert tried == [4]


@pytest.mark.parametrize("overhead", [0, 4, 12, 1000])
def test_no_other_groups_of_similar_lengths_cost_less(overhead: int) -> None:
    lengths = [3, 7, 4, 9, 3, 7, 2]

    def cost(groups: Iterable[Sequence[int]]) -> int:
        return sum(overhead + len(group) * max(lengths[i] for i in group) for group in groups)

    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    every = [
        [order[start:end] for start, end in pairwise([0, *cuts, len(order)])]
        for number in range(len(order))
        for cuts in combinations(range(1, len(order)), number)
    ]
    found = alike(lengths, overhead)
    assert sorted(i for group in found for i in group) == sorted(order)
    assert cost(found) == min(map(cost, every))


def test_no_lengths_give_no_groups() -> None:
    assert alike([], 5) == []
