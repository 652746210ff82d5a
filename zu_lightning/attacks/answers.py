"""Log-probabilities of answers, token by token: the basis of most attacks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import tokenize_all


@dataclass(frozen=True)
class AnswerLogprobs:
    """Log-probabilities of an answer's tokens, each given the prompt and the tokens before it.

    Attributes:
        log_probability: Of each token, in nats, float64.
        likeliest: Of each token, whether no other token is likelier.
        standardized: Of each token, how many standard deviations its log-probability is above the mean, both under the
            model's next-token distribution (Min-K%++, arXiv 2404.02936), float64.
    """

    log_probability: Tensor
    likeliest: Tensor
    standardized: Tensor

    @property
    def probability(self) -> float:
        """Probability of the whole answer."""
        return float(self.log_probability.sum().exp())

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives the whole answer."""
        return bool(self.likeliest.all())

    @property
    def mean_log_probability(self) -> float:
        """Mean over tokens, in nats."""
        return float(self.log_probability.mean())


@torch.no_grad()
def score_answers(lm: EditableLM, queries: Sequence[Query], batch_tokens: int) -> list[AnswerLogprobs]:
    """Score the answers to queries; a query that occurs several times is processed once.

    Args:
        lm: The model.
        queries: Prompts with answers.
        batch_tokens: Maximum number of tokens per batch, padding included.

    Returns:
        One entry for each query, on the CPU.
    """
    different = list(dict.fromkeys(queries))
    texts = tokenize_all(lm.tokenizer, different)
    scores: dict[Query, AnswerLogprobs] = {}
    for indices, batch in batched(lm, texts, batch_tokens):
        rows, positions, tokens = batch.answer_positions()
        by_token = _score_tokens(log_softmax(lm.logits(batch, rows, positions), -1), tokens)
        for row, i in enumerate(indices):
            scores[different[i]] = AnswerLogprobs(*(values[(rows == row).cpu()] for values in by_token))
    return [scores[query] for query in queries]


def _score_tokens(log_p: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own = log_p.gather(1, tokens[:, None])[:, 0]
    p = log_p.exp()
    mean = (p * log_p).sum(1)
    deviation = ((p * log_p.square()).sum(1) - mean.square()).clamp(min=0).sqrt()
    standardized = (own - mean) / deviation.clamp(min=1e-6)
    return own.double().cpu(), (log_p.argmax(1) == tokens).cpu(), standardized.double().cpu()


def score_answers_by_fact(
    lm: EditableLM, queries_of: Callable[[int], Sequence[Query]], facts: Sequence[int], batch_tokens: int
) -> list[list[AnswerLogprobs]]:
    """Score the answers to each fact's queries."""
    by_fact = [list(queries_of(i)) for i in facts]
    answers = score_answers(lm, [query for queries in by_fact for query in queries], batch_tokens)
    return [answers[start:end] for start, end in pairwise(accumulate(map(len, by_fact), initial=0))]


def approximate_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return len(text) // 4 + 1
