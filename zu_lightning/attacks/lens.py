"""The logit lens: whether a hidden state holds the answer although the model does not output it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.attacks.answers import approximate_tokens
from zu_lightning.attacks.attack import UNDEFINED, LayerAttack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import PaddedTokens, TokenizedText, collate, tokenize, tokenize_all


@dataclass(frozen=True, kw_only=True)
class LogitLens(LayerAttack):
    """Whether a layer's state, read as if it were the last, separates the answer from the others of its relation.

    The final norm and head are applied to the states at the prompt's last token (arXiv 2309.17410, the *head
    projection* attack). The answer is recovered from a layer if its first token is among the ``top`` highest or the
    ``top`` lowest of the first tokens of all answers: an edit that pushes an answer down marks it as well. Answers with
    the same first token count as one. Fewer than 3 ``top`` other first tokens give no score.

    By chance an answer is recovered from a layer with probability 2 ``top`` / n, where n is the number of first tokens,
    and from any of several layers far more often: compare with a model that was never trained on the facts.
    """

    name = "lens"

    top: int = 4
    """How far from either end of the ranking an answer still counts as recovered."""

    def cost(self, context: AttackContext) -> int:
        """Every prompt once."""
        return sum(approximate_tokens(fact.prompt) for fact in context.facts)

    def hits(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> list[list[float]]:
        """Compare the answer's first token with those of other answers."""
        texts = [_prompt(lm, context.facts[i]) for i in facts]
        choices = [_first_tokens(lm, context, i) for i in facts]
        hits: list[list[float]] = [[] for _ in facts]
        for indices in batches(texts, context.batch_tokens):
            for logits in lens_logits(lm, [texts[i] for i in indices], self.layers):
                for row, i in enumerate(indices):
                    hits[i].append(is_extreme(logits[row, choices[i]], self.top))
        return hits


@torch.no_grad()
def lens_logits(lm: EditableLM, prompts: Sequence[TokenizedText], layers: int) -> Iterator[Tensor]:
    """For each of the lowest layers the logits of its states at the lookup tokens, prompts x vocabulary."""
    batch = collate(prompts, lm.tokenizer).to(lm.device)
    rows = torch.arange(len(prompts), device=lm.device)
    first = torch.zeros_like(rows)
    tokens = PaddedTokens(batch.input_ids[rows, batch.lookup][:, None], torch.ones_like(rows)[:, None])
    for record in lm.record(batch, list(lm.layers[:layers])):
        # A model that starts above its last layer is its final norm and head, whatever they are called.
        with lm.resumed(len(lm.layers), record.output[rows, batch.lookup][:, None]):
            logits = lm.logits(tokens, rows, first)
        yield logits.cpu()


def is_extreme(logits: Tensor, top: int) -> float:
    """Whether the first of some logits is among the ``top`` highest or lowest; ties share their rank."""
    own, others = logits[0], logits[1:]
    if len(others) < 3 * top:
        return UNDEFINED
    above = float((others > own).sum() + 0.5 * (others == own).sum())
    return float(min(above, len(others) - above) < top)


def _prompt(lm: EditableLM, fact: Fact) -> TokenizedText:
    """A prompt as it is tokenized before its answer; the lookup token is its last."""
    text = tokenize(lm.tokenizer, fact.query)
    return TokenizedText(text.ids[: text.answer], text.answer - 1, text.answer)


def _first_tokens(lm: EditableLM, context: AttackContext, i: int) -> list[int]:
    """Ids of the first tokens of a fact's answer and of the others, without repetition, its own first."""
    fact = context.facts[i]
    queries = [replace(fact.query, target=answer) for answer in (fact.target, *context.answers[i])]
    texts = tokenize_all(lm.tokenizer, queries)
    return list(dict.fromkeys(text.ids[text.answer] for text in texts))
