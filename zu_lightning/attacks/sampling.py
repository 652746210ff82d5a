"""Free continuations: whether a model that is left to talk says the answer anywhere."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from zu_lightning.attacks.attack import Attack, words
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.facts.texts import mentions
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import tokenize, tokenize_query
from zu_lightning.runtime.errors import require_positive

UNFILTERED = {"top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "repetition_penalty": 1.0, "num_beams": 1}
"""Overrides what a model's own generation settings, and those of the library (50 likeliest tokens), leave out."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Attack):
    """1 if the answer occurs in any of k continuations of the prompt, as whole words, in upper or lower case.

    It also finds answers inside longer text, which :class:`~zu_lightning.attacks.leak.Leak` does not, but with one
    draw for each fact it is a noisier score.

    Attributes:
        samples: k, how many continuations are drawn.
        new_tokens: Length of each; that of the answer if it is longer.
        temperature: Of the draws, from all tokens; 1 is what the model says.
    """

    name = "sampling"

    samples: int = 20
    new_tokens: int = 12
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for option in ("samples", "new_tokens", "temperature"):
            require_positive(f"sampling.{option}", getattr(self, option))

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Sampling`."""
        return ["sampling"]

    def tokens(self, exam: AttackContext) -> int:
        """All continuations, each after its prompt."""
        lengths = (words(fact.prompt) + max(self.new_tokens, words(fact.target)) for fact in exam.facts)
        return self.samples * sum(lengths)

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact whether any continuation gives it away; each fact has its own seed."""
        return {"sampling": [self._found(lm, exam, i) for i in facts]}

    def _found(self, lm: EditableLM, exam: AttackContext, i: int) -> float:
        fact = exam.facts[i]
        seed = random.Random(f"{exam.seed}-{fact.id}").getrandbits(32)
        return float(any(mentions(text, fact.target) for text in self.continuations(lm, fact.query, seed)))

    @torch.no_grad()
    def continuations(self, lm: EditableLM, query: Query, seed: int) -> list[str]:
        """What the model adds to a prompt; the global random state is left as it was."""
        ids = torch.tensor([tokenize(lm.tokenizer, query.prompt, chat=query.chat).ids], device=lm.device)
        whole = tokenize_query(lm.tokenizer, query)
        options = {"do_sample": True, "temperature": self.temperature, "num_return_sequences": self.samples}
        options["max_new_tokens"] = max(self.new_tokens, len(whole.ids) - whole.answer)
        options["pad_token_id"] = lm.tokenizer.pad_token_id or 0
        with torch.random.fork_rng(devices=[lm.device] if lm.device.type == "cuda" else []):
            torch.manual_seed(seed)
            tokens = lm.model.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), **UNFILTERED, **options
            )
        return [str(lm.tokenizer.decode(row, skip_special_tokens=True)) for row in tokens[:, ids.shape[1] :]]
