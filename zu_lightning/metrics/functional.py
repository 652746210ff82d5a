"""Scores of answers and of text, from logits at the places that matter only."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax


@dataclass(frozen=True)
class AnswerScores:
    """Scores of a batch of answers.

    Attributes:
        exact: Whether greedy decoding gives the whole answer, answers.
        token_accuracy: Share of the answer's tokens that are the likeliest after the true ones before, answers.
        probability: Probability of the whole answer, the product over its tokens, answers.
    """

    exact: Tensor
    token_accuracy: Tensor
    probability: Tensor


def answer_scores(logits: Tensor, tokens: Tensor, answer: Tensor, count: int) -> AnswerScores:
    """Score answers by exact match under greedy decoding and by probability.

    One forward pass over prompt and answer is enough for both: greedy decoding gives the answer if and only if each
    of its tokens is the likeliest one after the prompt and the answer's tokens before it.

    Args:
        logits: tokens x vocabulary, at the place before each answer token.
        tokens: Ids of the answer tokens.
        answer: Which answer each token belongs to, 0 to count - 1.
        count: Number of answers.

    Returns:
        Scores of each answer.

    Raises:
        ValueError: Shapes disagree.
    """
    if logits.dim() != 2 or tokens.shape != logits.shape[:1] or answer.shape != tokens.shape:
        raise ValueError(
            "`logits` is expected to be (tokens, vocabulary) with `tokens` and `answer` (tokens,), but got "
            f"{tuple(logits.shape)}, {tuple(tokens.shape)} and {tuple(answer.shape)}."
        )
    none = torch.zeros(count, dtype=torch.float64, device=logits.device)
    wrong = none.index_add(0, answer, (logits.argmax(-1) != tokens).double())
    length = none.index_add(0, answer, torch.ones_like(tokens).double())
    log_probability = log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0].double()
    total = none.index_add(0, answer, log_probability)
    return AnswerScores(exact=wrong == 0, token_accuracy=1 - wrong / length.clamp(min=1), probability=total.exp())


def negative_log_likelihood(logits: Tensor, tokens: Tensor) -> Tensor:
    """Sum of -log p over tokens, in nats, float64.

    Args:
        logits: tokens x vocabulary, at the place before each token.
        tokens: Ids of the tokens.

    Returns:
        A scalar.
    """
    return cross_entropy(logits, tokens, reduction="none").double().sum()
