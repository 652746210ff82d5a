"""References: the model's predictions for unknown subjects."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import next_token_probabilities
from zu_lightning.lm.tokens import Prompt, tokenize_all

Key = tuple[str, tuple[str, str], tuple[str, ...]]
"""A context, a prompt before and after its subject, and the unknown subjects: facts of a relation share references."""


class References:
    """Next-token predictions after a prompt about unknown subjects, averaged over the subjects.

    Args:
        lm: The model, unedited.
        variants: Prompt variants of the facts.
        batch_tokens: Maximum number of tokens per batch, padding included.
    """

    def __init__(self, lm: EditableLM, variants: PromptVariants, batch_tokens: int = BATCH_TOKENS) -> None:
        self.lm, self.variants, self.batch_tokens = lm, variants, batch_tokens
        self.computed: dict[Key, Tensor] = {}

    @torch.no_grad()
    def of(self, facts: Sequence[Fact], unknown_subjects: Sequence[tuple[str, ...]]) -> Tensor:
        """Log of the mean probability of the next token, variants x n x vocabulary, float32.

        A fact with fewer variants than others has its bare prompt's predictions in place of the rest.

        Args:
            facts: n facts with subjects.
            unknown_subjects: For each fact, the subjects that replace its own.

        Raises:
            InputError: A fact has no subject.
        """
        prompts: dict[Key, list[Prompt]] = {}
        keys: list[list[Key]] = []
        for fact, subjects in zip(facts, unknown_subjects, strict=True):
            keys.append([])
            for context, variant in self.variants.of(fact):
                key = context, variant.template, subjects
                keys[-1].append(key)
                if key not in self.computed and key not in prompts:
                    prompts[key] = [Prompt.about(variant.about(name), context=context) for name in subjects]
        self._compute(prompts)
        logs = [[self.computed[key] for key in of_fact] for of_fact in keys]
        count = max(map(len, logs))
        return torch.stack([torch.stack(rows + rows[:1] * (count - len(rows))) for rows in logs], 1)

    def _compute(self, prompts: Mapping[Key, Sequence[Prompt]]) -> None:
        """Compute the references that are missing, all in the same batches."""
        if not prompts:
            return
        texts = tokenize_all(self.lm.tokenizer, [prompt for group in prompts.values() for prompt in group])
        sizes = torch.tensor([len(group) for group in prompts.values()], device=self.lm.device)
        owner = torch.arange(len(sizes), device=self.lm.device).repeat_interleave(sizes)
        total: Tensor | None = None
        for indices, probability in next_token_probabilities(self.lm, texts, self.batch_tokens):
            total = probability.new_zeros(len(sizes), probability.shape[1]) if total is None else total
            total.index_add_(0, owner[indices], probability)
        assert total is not None
        self.computed |= zip(prompts, (total / sizes[:, None]).clamp(min=1e-30).log(), strict=True)


def first_tokens(lm: EditableLM, facts: Sequence[Fact]) -> Tensor:
    """Id of the first token of each fact's answer, n."""
    texts = tokenize_all(lm.tokenizer, [Prompt.about(fact, answer=fact.target) for fact in facts])
    return torch.tensor([text.ids[text.answer] for text in texts], device=lm.device)
