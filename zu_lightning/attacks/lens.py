"""The logit lens: is the answer in a state on the way, though the model does not say it in the end?"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.attacks.attack import NOTHING, Attack, words
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Fact
from zu_lightning.lm import architecture
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import PaddedTokens, TokenizedText, collate, tokenize_query
from zu_lightning.runtime.errors import require_positive


@dataclass(frozen=True, kw_only=True)
class LogitLens(Attack):
    """Whether a layer's state, read as if it were the last, sets the answer apart from its relation's others.

    The final norm and head are applied to the states at the prompt's last token (arXiv 2309.17410, the *head
    projection* attack). The answer is found in a layer if its first token is among the ``top`` highest or the ``top``
    lowest of the first tokens of all answers: an edit that pushes an answer down marks it as well. Answers with the
    same first token count as one.

    By chance an answer is found in a layer with probability 2 ``top`` / n, where n is the number of first tokens, and
    in any of several layers far more often: compare with a model that never knew.
    """

    name = "lens"

    layers: int
    """Number of layers to look at, lowest first: the model's depth for all."""
    top: int = 4
    """How far from either end of the ranking an answer still counts as found."""

    def __post_init__(self) -> None:
        """Refuse numbers that are not positive."""
        require_positive("layers", self.layers)
        require_positive("top", self.top)

    def names(self, exam: AttackContext) -> list[str]:
        """Found in any layer, and in each, the lowest being 0."""
        return ["lens", *(f"lens_layer_{layer}" for layer in range(self.layers))]

    def tokens(self, exam: AttackContext) -> int:
        """Every prompt once."""
        return sum(words(fact.prompt) for fact in exam.facts)

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact and layer 1 if the answer is found; nothing among fewer than 3 ``top`` other first tokens."""
        architecture.check_layers(range(self.layers), len(lm.layers))
        texts = [_prompt(lm, exam.facts[i]) for i in facts]
        choices = [_first_tokens(lm, exam, i) for i in facts]
        found: list[list[float]] = [[] for _ in facts]
        for indices in batches(texts, exam.batch_tokens):
            for logits in lens_logits(lm, [texts[i] for i in indices], self.layers):
                for row, i in enumerate(indices):
                    found[i].append(is_found(logits[row, choices[i]], self.top))
        names = self.names(exam)[1:]
        layers = {name: [row[layer] for row in found] for layer, name in enumerate(names)}
        return {"lens": [max(row) for row in found]} | layers


@torch.no_grad()
def lens_logits(lm: EditableLM, prompts: Sequence[TokenizedText], layers: int) -> Iterator[Tensor]:
    """For each of the lowest layers the logits that its states at the lookup tokens give, prompts x vocabulary."""
    batch = collate(prompts, lm.tokenizer).to(lm.device)
    rows = torch.arange(len(prompts), device=lm.device)
    first = torch.zeros_like(rows)
    tokens = PaddedTokens(batch.input_ids[rows, batch.lookup][:, None], torch.ones_like(rows)[:, None])
    for record in lm.record(batch, list(lm.layers[:layers])):
        # A model that starts above its last layer is its final norm and head, whatever they are called.
        with lm.resumed(len(lm.layers), record.output[rows, batch.lookup][:, None]):
            logits = lm.logits(tokens, rows, first)
        yield logits.cpu()


def is_found(logits: Tensor, top: int) -> float:
    """Whether the first of some logits is among the ``top`` highest or lowest; equal ones share their place."""
    own, others = logits[0], logits[1:]
    if len(others) < 3 * top:
        return NOTHING
    above = float((others > own).sum() + 0.5 * (others == own).sum())
    return float(min(above, len(others) - above) < top)


def _prompt(lm: EditableLM, fact: Fact) -> TokenizedText:
    """A prompt as it is tokenized before its answer; the lookup token is its last."""
    text = tokenize_query(lm.tokenizer, fact.query)
    return TokenizedText(text.ids[: text.answer], text.answer - 1, text.answer)


def _first_tokens(lm: EditableLM, exam: AttackContext, i: int) -> list[int]:
    """Ids of the first tokens of a fact's answer and of the others, each once, its own first."""
    texts = [
        tokenize_query(lm.tokenizer, replace(exam.facts[i].query, target=answer))
        for answer in (exam.facts[i].target, *exam.answers[i])
    ]
    return list(dict.fromkeys(text.ids[text.answer] for text in texts))
