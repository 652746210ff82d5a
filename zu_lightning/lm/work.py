"""How long passes will take: work that is counted before it is done, and the speed of a model on its device."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple, dataclass

import torch
from torch.nn.functional import log_softmax

from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import PaddedTokens, TokenBatch, TokenizedText
from zu_lightning.runtime.timing import Monitor

ENOUGH = 0.2
"""Seconds of a pass that say how fast passes are."""
REPEATS = 4
"""Number of times that something faster is timed."""
FIRST_ROWS, PLACES, WIDTH = 4, 64, 384
"""Rows of the first pass that is timed; places whose logits are timed; width of a product of square matrices."""


@dataclass(frozen=True)
class Work:
    """What has to be computed. With gradients, everything counts three times.

    Attributes:
        tokens: Tokens through all layers, padding included; through some of the layers they count by their share.
        places: Places whose logits are computed.
        passes: Forward passes, which take time however few tokens they have; through some layers by their share.
        flop: Of products of matrices in float64.
    """

    tokens: float = 0.0
    places: float = 0.0
    passes: float = 0.0
    flop: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> "Work":
        return Work(*(factor * part for part in astuple(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Speed:
    """Seconds that each unit of :class:`Work` takes, by the same names."""

    tokens: float
    places: float
    passes: float
    flop: float

    def seconds(self, work: Work) -> float:
        """Seconds that some work takes."""
        return float(sum(each * number for each, number in zip(astuple(self), astuple(work), strict=True)))


def texts_work(texts: Sequence[TokenizedText], batch_tokens: int) -> Work:
    """One pass over texts, in batches of similar length, with a place in each."""
    groups = list(batches(texts, batch_tokens))
    return Work(sum(len(group) * max(len(texts[i].ids) for i in group) for group in groups), len(texts), len(groups))


def suffix_work(texts: Sequence[TokenizedText], groups: Sequence[Hashable], share: float = 1.0) -> Work:
    """A batch whose groups' common prefixes are read once (:func:`zu_lightning.lm.suffix.after_shared_prefix`).

    Args:
        texts: The batch.
        groups: Each text's group.
        share: Share of the layers that the rest of each text goes through.
    """
    members: dict[Hashable, list[TokenizedText]] = {}
    for text, group in zip(texts, groups, strict=True):
        members.setdefault(group, []).append(text)
    shared = {group: min(min(_agreement(some[0].ids, text.ids), text.lookup) for text in some)
              for group, some in members.items()}  # fmt: skip
    longest = max(len(text.ids) - (text.answer < len(text.ids)) - shared[group]
                  for text, group in zip(texts, groups, strict=True))  # fmt: skip
    return Work(len(members) * max(1, *shared.values()) + share * len(texts) * longest, 0, 1 + share)


def _agreement(ids: Sequence[int], others: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    return next((i for i, (mine, other) in enumerate(zip(ids, others, strict=False)) if mine != other),
                min(len(ids), len(others)))  # fmt: skip


@torch.no_grad()
def measure_speed(lm: EditableLM, batch: TokenBatch) -> Speed:
    """Time passes over texts such as those that will be read; it takes about a second.

    Args:
        lm: The model.
        batch: Texts with answers; as many of them are read as are needed.
    """
    batch = batch.to(lm.device)
    one = torch.ones(1, 1, dtype=torch.long, device=lm.device)
    nowhere = one.new_zeros(0)
    passes = _seconds(lambda: lm.logits(PaddedTokens(0 * one, one), nowhere, nowhere))

    hidden = lm.record(PaddedTokens(batch.input_ids[:1], batch.attention_mask[:1]), [lm.layers[-1]])[0].output[0, :1]
    states, first = hidden[None].expand(PLACES, -1, -1), one.new_zeros(PLACES)
    tokens = PaddedTokens(first[:, None], 1 + first[:, None])

    def logits() -> object:
        # A model that starts above its last layer is its final norm and head.
        with lm.resumed(len(lm.layers), states):
            return log_softmax(lm.logits(tokens, torch.arange(PLACES, device=lm.device), first), -1)

    places = _seconds(logits) / PLACES
    rows, elapsed = min(FIRST_ROWS, len(batch.lengths)), 0.0
    while True:
        some = batch.select(torch.arange(rows, device=lm.device))
        read, positions, _ = some.answer_positions()
        elapsed = _seconds(lambda: lm.logits(some, read, positions))  # noqa: B023
        if elapsed > ENOUGH or rows == len(batch.lengths):
            break
        rows = min(2 * rows, len(batch.lengths))
    rest = max(elapsed - passes - places * len(read), 0.1 * elapsed)  # the parts were measured apart
    square = torch.ones(WIDTH, WIDTH, dtype=torch.float64, device=lm.device)
    flop = _seconds(lambda: square @ square) / (2 * WIDTH**3)
    return Speed(rest / some.input_ids.numel(), places, passes, flop)


def _seconds(compute: Callable[[], object]) -> float:
    """Mean time of a computation, after a first one."""
    compute()
    monitor, count = Monitor(), 0
    while count < REPEATS and monitor.seconds.get("", 0.0) < ENOUGH:
        with monitor.timed(""):
            compute()
        count += 1
    return monitor.seconds[""] / count
