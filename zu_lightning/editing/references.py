"""References: what the model says about unknown subjects."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import BATCH_TOKENS, next_token_probabilities
from zu_lightning.lm.tokens import Prompt, tokenize_all

Way = tuple[str, Fact, tuple[str, ...]]
"""A context, a fact with its prompt, and the unknown subjects to put in its subject's place."""
Key = tuple[str, tuple[str, str], tuple[str, ...]]
"""The same with the prompt around the subject alone: facts of a relation ask the same."""


class References:
    """What a model says after a prompt when somebody else is its subject, averaged over unknown subjects.

    Args:
        lm: The model, unedited.
        variants: Prompt variants of the facts.
    """

    def __init__(self, lm: EditableLM, variants: PromptVariants, batch_tokens: int = BATCH_TOKENS) -> None:
        self.lm, self.variants, self.batch_tokens = lm, variants, batch_tokens
        self.known: dict[Key, Tensor] = {}

    @torch.no_grad()
    def of(self, facts: Sequence[Fact], unknown_subjects: Sequence[tuple[str, ...]]) -> Tensor:
        """Log of the mean probability of the next token, variants x n x vocabulary, float32.

        A fact with fewer variants than others has those of its bare prompt instead of the rest.

        Args:
            facts: n facts with subjects.
            unknown_subjects: For each fact the subjects to ask about.

        Raises:
            InputError: A fact has no subject.
        """
        asked = [
            [(context, put, names) for context, put in self.variants.of(fact)]
            for fact, names in zip(facts, unknown_subjects, strict=True)
        ]
        self._ask({_key(*way): way for ways in asked for way in ways})
        said = [[self.known[_key(*way)] for way in ways] for ways in asked]
        count = max(map(len, said))
        return torch.stack([torch.stack(ways + ways[:1] * (count - len(ways))) for ways in said], 1)

    def _ask(self, ways: Mapping[Key, Way]) -> None:
        """Compute what is missing, all of it in the same batches."""
        new = [key for key in ways if key not in self.known]
        if not new:
            return
        put = [(i, way[0], way[1].about(name)) for i, way in enumerate(ways[key] for key in new) for name in way[2]]
        texts = tokenize_all(self.lm.tokenizer, [Prompt.about(fact, context=context) for _, context, fact in put])
        owner = torch.tensor([i for i, _, _ in put], device=self.lm.device)
        total: Tensor | None = None
        for indices, probability in next_token_probabilities(self.lm, texts, self.batch_tokens):
            if total is None:
                total = probability.new_zeros(len(new), probability.shape[1])
            total.index_add_(0, owner[indices], probability)
        assert total is not None
        means = total / owner.bincount()[:, None]
        self.known |= zip(new, means.clamp(min=1e-30).log(), strict=True)


def _key(context: str, fact: Fact, names: tuple[str, ...]) -> Key:
    return context, fact.template, names


def first_tokens(lm: EditableLM, facts: Sequence[Fact]) -> Tensor:
    """Id of the first token of each fact's answer, n."""
    texts = tokenize_all(lm.tokenizer, [Prompt.about(fact, answer=fact.target) for fact in facts])
    return torch.tensor([text.ids[text.answer] for text in texts], device=lm.device)
