"""How causal tracing takes a subject away: by noise, or by another fact's subject in its place.

Shapes: S corruptions of a fact, N tokens of its subject, D width of the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import collate
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.files import digest
from zu_lightning.tracing.roles import TracedText

Corruption = Literal["noise", "interchange"]

EMBEDDED_TOKENS = 8192
"""Tokens in a batch whose embeddings are looked up."""


@dataclass(frozen=True)
class Corruptor:
    """Makes the embeddings that a fact's subject gets, which depend on the facts and the seed only.

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

    def embedded(self, fact: int, samples: int) -> Tensor:
        """Embeddings of a fact's subject, S x N x D, float32."""
        if self.scale is None:
            return torch.stack([self._borrowed(fact, donor) for donor in self.donors(fact, samples)])
        own = self.embeddings[fact]
        # Of the fact, not of the batch: any batches and any number of processes give the same.
        generator = torch.Generator().manual_seed(int(digest(self.seed, self.facts[fact].id)[:15], 16))
        noise = torch.randn(samples, *own.shape, generator=generator)
        return own + self.scale * noise.to(own.device)

    def donors(self, fact: int, samples: int) -> list[int]:
        """Facts about others whose subjects a fact gets, the one before it first; of other answers if there are any.

        If there are fewer than ``samples``, they come again.

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
        """Embeddings of another fact's subject, N x D, aligned at the last token; its first one fills what is left."""
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
    found: dict[int, Tensor] = {}
    module = lm.model.get_input_embeddings()
    for indices in batches([text.text for text in texts], EMBEDDED_TOKENS):
        batch = collate([texts[i].text for i in indices], lm.tokenizer).to(lm.device)
        (record,) = lm.record(batch, [module])
        for i, row in zip(indices, record.output.float(), strict=True):
            found[i] = row[list(texts[i].subject)]
    embeddings = [found[i] for i in range(len(texts))]
    scale = None if noise is None else noise * torch.cat(embeddings).double().std().item()
    return Corruptor(facts, embeddings, scale, seed)
