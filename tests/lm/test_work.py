"""Work, counted from the lengths of texts."""

from zu_lightning.lm.tokens import TokenizedText
from zu_lightning.lm.work import Speed, Work, suffix_work, texts_work


def text(ids: list[int], lookup: int, answer: int | None = None) -> TokenizedText:
    return TokenizedText(ids, lookup, len(ids) if answer is None else answer)


def test_seconds_are_those_of_every_part() -> None:
    work = Work(tokens=10, places=4, passes=2, flop=8) + 2 * Work(tokens=5)
    assert work == Work(20, 4, 2, 8)
    assert Speed(tokens=0.5, places=0.25, passes=1.0, flop=0.125).seconds(work) == 10 + 1 + 2 + 1


def test_padding_is_read() -> None:
    texts = [text([1, 2, 3], 2), text([1], 0), text([1, 2, 3, 4], 3)]
    assert texts_work(texts, batch_tokens=8) == Work(2 * 3 + 4, 3, 2)


def test_a_common_prefix_is_read_once() -> None:
    texts = [text([1, 2, 3, 4], 3), text([1, 2, 5], 2), text([7, 8, 9, 6], 1, answer=3)]
    # Two tokens in common; the other group begins at its lookup token, and what follows its last one is not read.
    assert suffix_work(texts, ["a", "a", "b"], share=0.5) == Work(2 * 2 + 0.5 * 3 * 2, 0, 1.5)
    # Without a common prefix, one token is read nevertheless.
    assert suffix_work([text([1, 2], 1), text([3, 2], 1)], [0, 0]) == Work(1 + 2 * 2, 0, 2)
