"""Scores of answers and of text, from the logits at the places that matter."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax


@dataclass(frozen=True)
class AnswerScores:
    """Scores of a batch of answers.

    Attributes:
        exact: Whether greedy decoding gives the whole answer; one entry per answer.
        token_accuracy: Share of the answer's tokens that are the likeliest ones after the true tokens before them; one
            entry per answer.
        probability: Probability of the whole answer, the product over its tokens; one entry per answer.
        log_probability: Mean log-probability of the answer's tokens, in nats; one entry per answer.
        margin: How much likelier each token of the answer is than the likeliest other token, in nats, at the token
            where this is least; positive if and only if greedy decoding gives the whole answer. One entry per answer.
    """

    exact: Tensor
    token_accuracy: Tensor
    probability: Tensor
    log_probability: Tensor
    margin: Tensor


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

    Example:
        The first answer has two tokens, and the second has one, which greedy decoding does not give.

        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
        >>> scores = answer_scores(logits, torch.tensor([0, 1, 0]), answer=torch.tensor([0, 0, 1]), count=2)
        >>> scores.exact
        tensor([ True, False])
        >>> scores.token_accuracy
        tensor([1., 0.], dtype=torch.float64)
        >>> scores.probability
        tensor([0.7758, 0.1192], dtype=torch.float64)
        >>> scores.margin
        tensor([ 2., -2.], dtype=torch.float64)
    """
    if logits.dim() != 2 or tokens.shape != logits.shape[:1] or answer.shape != tokens.shape:
        raise ValueError(
            "`logits` is expected to be (tokens, vocabulary) with `tokens` and `answer` (tokens,), but got "
            f"{tuple(logits.shape)}, {tuple(tokens.shape)}, and {tuple(answer.shape)}."
        )
    none = torch.zeros(count, dtype=torch.float64, device=logits.device)
    wrong = none.index_add(0, answer, (logits.argmax(-1) != tokens).double())
    length = none.index_add(0, answer, torch.ones_like(tokens).double())
    log_probability = log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0].double()
    total = none.index_add(0, answer, log_probability)
    length = length.clamp(min=1)
    lead = token_margins(logits, tokens).double()
    margin = torch.full_like(none, torch.inf).scatter_reduce(0, answer, lead, "amin")
    return AnswerScores(
        exact=wrong == 0,
        token_accuracy=1 - wrong / length,
        probability=total.exp(),
        log_probability=total / length,
        margin=margin,
    )


def token_margins(logits: Tensor, tokens: Tensor) -> Tensor:
    """How much likelier each token is than the likeliest other one, in nats; negative if that one is likelier.

    Args:
        logits: tokens x vocabulary, at the place before each token.
        tokens: Ids of the tokens.
    """
    likeliest, second = logits.topk(2).values.unbind(1)
    own = logits.gather(1, tokens[:, None])[:, 0]
    return own - torch.where(logits.argmax(1) == tokens, second, likeliest)


def token_nll(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of each token, in nats, float64.

    Args:
        logits: tokens x vocabulary, at the place before each token.
        tokens: Ids of the tokens.

    Example:
        A token that is as likely as one other costs log 2 nats.

        >>> token_nll(torch.zeros(2, 2), torch.tensor([0, 1]))
        tensor([0.6931, 0.6931], dtype=torch.float64)
    """
    return cross_entropy(logits, tokens, reduction="none").double()
