"""Models whose knowledge is known, and small exams."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.conftest import DEMO
from zu_lightning import EditableLM, Fact
from zu_lightning.attacks import answers
from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.suffix import Suffix, after_shared_prefix
from zu_lightning.lm.tokens import PaddedTokens, TokenBatch

DISTRIBUTION = Callable[[list[int]], Tensor]
"""From the ids of a text to the logits of what follows, vocabulary."""


class Oracle(EditableLM):
    """The demo model's tokenizer with a next-token distribution that a test makes up."""

    def __init__(self, lm: EditableLM, distribution: DISTRIBUTION) -> None:
        super().__init__(lm.model, lm.tokenizer)
        self.distribution = distribution

    def logits(self, tokens: PaddedTokens, rows: Tensor, positions: Tensor, **_: Any) -> Tensor:
        """What the test makes up, at the given places."""
        pairs = zip(rows.tolist(), positions.tolist(), strict=True)
        return torch.stack([self.distribution(tokens.input_ids[row, : at + 1].tolist()) for row, at in pairs])


class WholeTexts(NamedTuple):
    """In place of a suffix: an oracle keeps no states of prompts."""

    batch: TokenBatch

    def logits(self, lm: EditableLM, rows: Tensor, positions: Tensor) -> Tensor:
        return lm.logits(self.batch, rows, positions)


@pytest.fixture(autouse=True, scope="session")
def oracles_read_whole_texts() -> Iterator[None]:
    def read(lm: EditableLM, batch: TokenBatch, group: Tensor) -> Suffix | WholeTexts:
        return WholeTexts(batch) if isinstance(lm, Oracle) else after_shared_prefix(lm, batch, group)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "after_shared_prefix", read)
        yield


@pytest.fixture(scope="session")
def base() -> EditableLM:
    """The demo model, which knows every fact; not to be changed."""
    return EditableLM.from_pretrained(DEMO / "model")


@pytest.fixture(scope="session")
def context(demo_facts: list[Fact]) -> AttackContext:
    """Four facts of the demo about different people, with few other answers, so that attacks are quick."""
    facts = demo_facts[:24:7]
    return AttackContext(
        facts=facts,
        answers=[tuple(sorted({f.target for f in _alike(fact, demo_facts)} - {fact.target}))[:5] for fact in facts],
        kept=[tuple(_alike(fact, demo_facts)[-40:]) for fact in facts],
        unknown_subjects=[("Ada Dahl", "Bruno Costa", "Nils Quist")] * len(facts),
        prose=(DEMO / "heldout.txt").read_text().splitlines()[:20],
    )


def _alike(fact: Fact, facts: list[Fact]) -> list[Fact]:
    relation = fact.id.rsplit("-", 1)[1]
    return [other for other in facts if other.id.endswith(relation)]
