"""Free continuations: whether a model that generates text gives the answer anywhere in it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from zu_lightning.attacks.answers import approximate_tokens
from zu_lightning.attacks.attack import Attack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.facts.texts import mentions
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import Prompt, tokenize

UNFILTERED = {"top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "repetition_penalty": 1.0, "num_beams": 1}
"""Overrides the filters of a model's own generation settings, and of the library's (the 50 likeliest tokens)."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Attack):
    """1 if the answer occurs in any of k continuations of the prompt, as whole words, in any case.

    It also finds answers inside longer text, which :class:`~zu_lightning.attacks.leak.Leak` does not, but with one
    draw for each fact it is a noisier score.

    Attributes:
        samples: k, the number of continuations.
        new_tokens: Length of each; that of the answer if it is longer.
        temperature: Sampling temperature; 1 samples from the model's own distribution.
    """

    name = "sampling"

    samples: int = 20
    new_tokens: int = 12
    temperature: float = 1.0

    def cost(self, context: AttackContext) -> int:
        """All continuations, each with its prompt."""
        return self.samples * sum(
            approximate_tokens(fact.prompt) + max(self.new_tokens, approximate_tokens(fact.target))
            for fact in context.facts
        )

    def scores(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact whether any continuation reveals it; each fact has its own seed."""
        found = []
        for fact in (context.facts[i] for i in facts):
            seed = random.Random(f"{context.seed}-{fact.id}").getrandbits(32)
            found.append(float(any(mentions(text, fact.target) for text in self.continuations(lm, fact.query, seed))))
        return {self.name: found}

    @torch.no_grad()
    def continuations(self, lm: EditableLM, query: Query, seed: int) -> list[str]:
        """Texts that the model samples after a prompt; the global random state is left as it was."""
        ids = torch.tensor([tokenize(lm.tokenizer, Prompt(query.prompt, chat=query.chat)).ids], device=lm.device)
        whole = tokenize(lm.tokenizer, query)
        options = {"do_sample": True, "temperature": self.temperature, "num_return_sequences": self.samples}
        options["max_new_tokens"] = max(self.new_tokens, len(whole.ids) - whole.answer)
        options["pad_token_id"] = lm.tokenizer.pad_token_id or 0
        with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
            torch.manual_seed(seed)
            tokens = lm.model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), **UNFILTERED, **options
            )
        return [str(lm.tokenizer.decode(row, skip_special_tokens=True)) for row in tokens[:, ids.shape[1] :]]
