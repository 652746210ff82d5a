"""References: what the model says of strangers, whom it knows nothing about."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import collate, tokenize_fact
from zu_lightning.problem.phrasings import Phrasings

BATCH_TOKENS = 2048


class References:
    """What a model says after a prompt when somebody else is its subject, averaged over strangers.

    Args:
        lm: The model, unedited.
        phrasings: How the facts are put.
    """

    def __init__(self, lm: EditableLM, phrasings: Phrasings) -> None:
        self.lm, self.phrasings = lm, phrasings
        self.known: dict[tuple[str, tuple[str, str], tuple[str, ...]], Tensor] = {}
        """By context, prompt around the subject, and strangers: facts of a relation ask the same."""

    @torch.no_grad()
    def of(self, facts: Sequence[Fact], strangers: Sequence[tuple[str, ...]]) -> Tensor:
        """Log of the mean probability of the next token, phrasings x n x vocabulary, float32.

        A fact with fewer phrasings than others has those of its bare prompt in place of the rest.

        Args:
            facts: n facts with subjects.
            strangers: For each fact the subjects to ask of.

        Raises:
            InputError: A fact has no subject.
        """
        said = [
            [self._said(context, put, names) for context, put in self.phrasings.of(fact)]
            for fact, names in zip(facts, strangers, strict=True)
        ]
        count = max(map(len, said))
        return torch.stack([torch.stack(ways + ways[:1] * (count - len(ways))) for ways in said], 1)

    def _said(self, context: str, fact: Fact, names: tuple[str, ...]) -> Tensor:
        key = (context, fact.template, names)
        if key not in self.known:
            self.known[key] = self._mean(fact, context, names)
        return self.known[key]

    def _mean(self, fact: Fact, context: str, names: Sequence[str]) -> Tensor:
        texts = [tokenize_fact(self.lm.tokenizer, fact.about(name), context=context) for name in names]
        total: Tensor | float = 0.0
        for indices in batches(texts, BATCH_TOKENS):
            batch = collate([texts[i] for i in indices], self.lm.tokenizer).to(self.lm.device)
            rows = torch.arange(len(indices), device=self.lm.device)
            total = total + log_softmax(self.lm.logits(batch, rows, batch.lengths - 1), -1).exp().sum(0)
        assert isinstance(total, Tensor)
        return (total / len(names)).clamp(min=1e-30).log()


def first_tokens(lm: EditableLM, facts: Sequence[Fact]) -> Tensor:
    """Id of the first token of each fact's answer, n."""
    texts = [tokenize_fact(lm.tokenizer, fact, answer=fact.target) for fact in facts]
    return torch.tensor([text.ids[text.answer] for text in texts], device=lm.device)
