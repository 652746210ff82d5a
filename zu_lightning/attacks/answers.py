"""What a model says of answers, token by token: what most attacks are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from zu_lightning.attacks.attack import words
from zu_lightning.facts.fact import Query
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import collate, tokenize_queries


@dataclass(frozen=True)
class AnswerLogprobs:
    """What a model says of an answer, given the prompt and the answer's tokens before.

    Attributes:
        log_probability: Of each token, in nats, float64.
        likeliest: Of each token, whether no other token is likelier.
        standardized: Of each token, how many standard deviations its log-probability lies above the mean, both over
            what the model would say (Min-K%++, arXiv 2404.02936), float64.
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
    """What the model says of the answers to some queries; a query that occurs several times is asked once.

    Args:
        lm: The model.
        queries: Prompts with answers.
        batch_tokens: Maximum number of tokens per batch, padding included.

    Returns:
        One entry for each query, on the CPU.
    """
    different = list(dict.fromkeys(queries))
    texts = tokenize_queries(lm.tokenizer, different)
    found: dict[Query, AnswerLogprobs] = {}
    for indices in batches(texts, batch_tokens):
        batch = collate([texts[i] for i in indices], lm.tokenizer).to(lm.device)
        rows, positions, tokens = batch.answer_positions()
        log_p = log_softmax(lm.logits(batch, rows, positions), -1)
        of_tokens = _of_tokens(log_p, tokens)
        for row, i in enumerate(indices):
            found[different[i]] = AnswerLogprobs(*(values[(rows == row).cpu()] for values in of_tokens))
    return [found[query] for query in queries]


def _of_tokens(log_p: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    own = log_p.gather(1, tokens[:, None])[:, 0]
    p = log_p.exp()
    mean = (p * log_p).sum(1)
    deviation = ((p * log_p.square()).sum(1) - mean.square()).clamp(min=0).sqrt()
    standardized = (own - mean) / deviation.clamp(min=1e-6)
    return own.double().cpu(), (log_p.argmax(1) == tokens).cpu(), standardized.double().cpu()


def asked(ask: Callable[[int], Sequence[Query]], facts: Sequence[int]) -> tuple[list[Query], list[int]]:
    """The queries of several facts in one list, and how many belong to each."""
    of_facts = [list(ask(i)) for i in facts]
    return [query for queries in of_facts for query in queries], [len(queries) for queries in of_facts]


def score_answers_by_fact(
    lm: EditableLM, ask: Callable[[int], Sequence[Query]], facts: Sequence[int], batch_tokens: int
) -> list[list[AnswerLogprobs]]:
    """What the model says of the answers to each fact's queries."""
    queries, counts = asked(ask, facts)
    answers = score_answers(lm, queries, batch_tokens)
    return [answers[start:end] for start, end in pairwise(accumulate(counts, initial=0))]


def reading(ask: Callable[[int], Sequence[Query]], facts: Sequence[int]) -> int:
    """About how many tokens the queries of several facts have, answers included."""
    return sum(words(query.prompt + query.target) for query in asked(ask, facts)[0])
