"""The texts of a latent optimization, as rows of a batch, and where its loss reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import alike
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import Suffix, after_shared_prefix
from zu_lightning.lm.tokens import TokenBatch, collate, tokenize_all

PASS_TOKENS = 128
"""Tokens that take about as long as what a pass costs besides its tokens."""


@dataclass(frozen=True)
class Kept:
    """A prompt after which the model should go on as before.

    Attributes:
        fact: Index of the fact about whose subject it is.
        number: Its place among the prompts to keep of this fact.
        prompt: The prompt.
        at_lookup: Whether that is read at its lookup token, in place of its last one.
        weight: Of its term in the loss.
    """

    fact: int
    number: int
    prompt: Fact
    at_lookup: bool
    weight: float


@dataclass(frozen=True)
class Places:
    """What the loss reads: before every answer token, or at the end of a prompt without; then in each text to keep."""

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    """Ids of the answer tokens; the places after them have none."""
    ends: Tensor
    """Rows of prompts without an answer, whose places follow those of the answer tokens."""

    @classmethod
    def of(cls, batch: TokenBatch, keep: Tensor, read: Tensor) -> "Places":
        """The places of a batch; rows to ``keep`` are ``read`` at one position each."""
        rows, positions, tokens = batch.answer_positions()
        ends, kept = (batch.without_answer & ~keep).nonzero().squeeze(1), keep.nonzero().squeeze(1)
        places = torch.cat([positions, batch.lengths[ends] - 1, read[kept]])
        return cls(torch.cat([rows, ends, kept]), places, tokens, ends)


@dataclass(frozen=True)
class Rows:
    """Texts of some facts, from their lookup tokens on: prompts, then prompts to keep."""

    batch: TokenBatch
    suffix: Suffix
    fact: Tensor
    """R, index of each row's fact."""
    variant: Tensor
    """R, in which way each row puts its fact; after these ways, which of its fact's prompts to keep a row is."""
    weight: Tensor
    """R, of each row's term in the loss."""
    read: Tensor
    """R, where a prompt to keep is read, in tokens from the start of the text."""
    kept: Tensor
    """R, the place of a prompt to keep among those of all facts; -1 for other rows."""
    variants: int
    """Number of these ways."""

    @classmethod
    def of(
        cls,
        lm: EditableLM,
        facts: Sequence[Fact],
        answers: Sequence[str],
        variants: PromptVariants,
        kept: Sequence[Kept],
    ) -> "Rows":
        """The whole texts of n facts, from where those with the same context differ.

        Args:
            lm: The model.
            facts: n facts.
            answers: What to put after each prompt, n; empty texts for nothing.
            variants: How the facts are put.
            kept: Prompts to keep.
        """
        put, tokenizer = variants.rows(facts), lm.tokenizer
        asked = [one.prompt(answers[one.position]) for one in put]
        texts, to_keep = tokenize_all(tokenizer, asked), tokenize_all(tokenizer, [one.prompt for one in kept])
        count = 1 + max(one.number for one in put)
        number = [one.number for one in put] + [count + one.number for one in kept]
        variant = torch.tensor(number, device=lm.device)
        fact = torch.tensor([one.position for one in put] + [one.fact for one in kept], device=lm.device)
        at_lookup = torch.tensor([False] * len(texts) + [one.at_lookup for one in kept], device=lm.device)
        batch = collate([*texts, *to_keep], tokenizer).to(lm.device)
        # Mean over an answer's tokens, then over the ways in which its fact is put.
        weight = 1.0 / (batch.lengths - batch.answer).clamp(min=1).float() / fact[: len(texts)].bincount()[fact]
        weight[len(texts) :] = weight.new_tensor([one.weight for one in kept])
        return cls(
            batch=batch,
            suffix=after_shared_prefix(lm, batch, variant.clamp(max=count)),
            fact=fact,
            variant=variant,
            weight=weight,
            read=torch.where(at_lookup, batch.lookup, batch.lengths - 1),
            kept=torch.tensor([-1] * len(texts) + list(range(len(kept))), device=lm.device),
            variants=count,
        )

    def select(self, chosen: Tensor) -> "Rows":
        """Some rows, by a mask."""
        return self if chosen.all() else self._part(chosen.nonzero().squeeze(1))

    def _part(self, rows: Tensor) -> "Rows":
        return replace(
            self,
            batch=self.batch.select(rows),
            suffix=self.suffix.select(rows),
            fact=self.fact[rows],
            variant=self.variant[rows],
            weight=self.weight[rows],
            read=self.read[rows],
            kept=self.kept[rows],
        )

    @cached_property
    def parts(self) -> list["Rows"]:
        """The same rows in parts of similar lengths, where that saves more padding than another pass costs."""
        parts = alike(self.suffix.lengths.tolist(), PASS_TOKENS)
        if len(parts) == 1:
            return [self]
        return [self._part(torch.tensor(sorted(part), device=self.fact.device)) for part in parts]

    def minibatch(self, step: int, number: int | None) -> "Rows":
        """The rows of one step: bare prompts, and in turn ``number - 1`` other ways and as many prompts to keep.

        At least one prompt to keep is among them. Over all turns a fact's ways weigh what they weigh together without
        turns, and so do its prompts to keep.
        """
        if number is None:
            return self
        count, place = self._of_its_kind(torch.ones_like(self.keep)), self.variant - self.variants
        others, to_keep = number - 1, max(1, number - 1)
        is_next = (self.variant - 1 - step * others) % max(1, self.variants - 1) < others
        is_next_to_keep = (place - step * to_keep) % count < to_keep
        chosen = (self.variant == 0) | torch.where(self.keep, is_next_to_keep, is_next)
        if chosen.all():
            return self
        weight = self.weight * count / self._of_its_kind(chosen).clamp(min=1)
        return replace(self, weight=weight).select(chosen)

    def _of_its_kind(self, chosen: Tensor) -> Tensor:
        """R, the number of chosen rows (a mask) of the same fact and kind (to forget or to keep) as each row."""
        kind = 2 * self.fact + self.keep
        return kind[chosen].bincount(minlength=int(kind.max()) + 1)[kind]

    @cached_property
    def keep(self) -> Tensor:
        """R, which prompts are to keep."""
        return self.kept >= 0

    @cached_property
    def places(self) -> "Places":
        """Where the loss looks, step after step."""
        return Places.of(self.batch, self.keep, self.read)
