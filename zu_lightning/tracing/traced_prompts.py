"""Prompts to trace: the role of each token, and corrupted embeddings of the subject.

Shapes: S corruptions of a fact, N tokens of its subject, D width of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zu_lightning.facts.fact import Fact, FactToken
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import Prompt, TokenizedText, tokenize
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest

Role = Literal["subject_first", "subject_middle", "subject_last", "after_first", "after_further", "last"]
"""The subject's first, middle, and last token; the first token after it, those that follow, and the prompt's last."""

ROLES: tuple[Role, ...] = get_args(Role)

ROLE_OF_LOOKUP: dict[FactToken, Role] = {
    "subject_first": "subject_first",
    "subject_last": "subject_last",
    "last": "last",
}
"""Role of a fact's lookup token."""

Corruption = Literal["noise", "interchange"]
"""Noise on the embeddings of the subject's tokens, as in ROME, or the embeddings of another fact's subject."""

EMBEDDED_TOKENS = 8192
"""Maximum number of tokens per batch when embeddings are looked up."""


@dataclass(frozen=True)
class TracedText:
    """A prompt with its answer, and the positions of its subject.

    Attributes:
        text: The token ids.
        subject: Positions of the subject's tokens.
        roles: Role of every token of the prompt from the subject on; states before the subject do not depend on it,
            since attention is causal.
    """

    text: TokenizedText
    subject: range
    roles: dict[int, Role]


def traced_text(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> TracedText:
    """Tokenize a fact with its answer, and assign roles to its tokens.

    A token has one role: the only token of a subject is its last one, and so is the last token of a prompt that ends
    with its subject.

    Raises:
        InputError: The fact has no subject.
    """
    if fact.subject is None:
        raise InputError("subject", None, f"fact {fact.id!r} needs one to be traced: add it, or leave the fact out.")
    first, text = (
        tokenize(tokenizer, Prompt.about(replace(fact, fact_token=token), answer=fact.target))
        for token in ("subject_first", "subject_last")
    )
    subject = range(min(first.lookup, text.lookup), text.lookup + 1)
    return TracedText(text, subject, _roles(subject, text.answer))


def _roles(subject: Sequence[int], end: int) -> dict[int, Role]:
    """Roles of the positions from the subject to the prompt's end; what is named later wins."""
    roles: dict[int, Role] = dict.fromkeys(range(subject[0], end), "after_further")
    roles[subject[-1] + 1] = "after_first"
    roles[end - 1] = "last"
    roles |= dict.fromkeys(subject, "subject_middle")
    roles[subject[0]] = "subject_first"
    roles[subject[-1]] = "subject_last"
    return {position: role for position, role in roles.items() if position < end}


@dataclass(frozen=True)
class Corruptor:
    """Corrupted embeddings of subjects; they depend on the facts and the seed only.

    Attributes:
        facts: Facts to trace.
        embeddings: Of each fact's subject, N x D, float32.
        scale: Standard deviation of the noise; ``None`` to interchange.
        seed: Seed of the noise.
    """

    facts: Sequence[Fact]
    embeddings: Sequence[Tensor]
    scale: float | None
    seed: int = 0

    def embeddings_of(self, fact: int, samples: int) -> Tensor:
        """Corrupted embeddings of a fact's subject, S x N x D, float32."""
        if self.scale is None:
            return torch.stack([self._borrowed(fact, donor) for donor in self.donors(fact, samples)])
        own = self.embeddings[fact]
        # Seeded by the fact: the noise does not depend on batches or the number of processes.
        generator = torch.Generator().manual_seed(int(digest(self.seed, self.facts[fact].id)[:15], 16))
        noise = torch.randn(samples, *own.shape, generator=generator)
        return own + self.scale * noise.to(own.device)

    def donors(self, fact: int, samples: int) -> list[int]:
        """Facts whose subjects replace that of a fact: about other subjects and, if possible, with other answers.

        The one before it comes first; fewer than ``samples`` are repeated.

        Raises:
            InputError: All facts have the same subject.
        """
        own, count = self.facts[fact], len(self.facts)
        others = [i % count for i in range(fact - 1, fact - count, -1) if self.facts[i % count].subject != own.subject]
        if not others:
            remedy = "interchange needs facts about at least two: trace more facts, or choose `corruption: noise`."
            raise InputError("number of subjects", 1, remedy)
        others = [i for i in others if self.facts[i].target != own.target] or others
        return [others[i % len(others)] for i in range(samples)]

    def _borrowed(self, fact: int, donor: int) -> Tensor:
        """Embeddings of another fact's subject, N x D, aligned at the last token and padded with its first one."""
        count, donated = len(self.embeddings[fact]), self.embeddings[donor]
        return donated[(torch.arange(len(donated) - count, len(donated))).clamp(min=0)]


def corruptor(
    lm: EditableLM, facts: Sequence[Fact], texts: Sequence[TracedText], noise: float | None, seed: int
) -> Corruptor:
    """Look up the embeddings of all subjects.

    Args:
        lm: The model.
        facts: Facts to trace.
        texts: The same facts, tokenized.
        noise: Standard deviation of the noise in units of that of all subjects' embeddings; ``None`` to interchange.
        seed: Seed of the noise.
    """
    by_fact: dict[int, Tensor] = {}
    module = lm.model.get_input_embeddings()
    for indices, batch in batched(lm, [text.text for text in texts], EMBEDDED_TOKENS):
        (record,) = lm.record(batch, [module])
        for i, row in zip(indices, record.output.float(), strict=True):
            by_fact[i] = row[list(texts[i].subject)]
    embeddings = [by_fact[i] for i in range(len(texts))]
    scale = None if noise is None else noise * torch.cat(embeddings).double().std().item()
    return Corruptor(facts, embeddings, scale, seed)
