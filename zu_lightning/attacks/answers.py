"""Log-probabilities of answers, token by token: the basis of most attacks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import PreTrainedTokenizerBase

from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import after_shared_prefix
from zu_lightning.lm.tokens import TokenizedText, collate, tokenize_all
from zu_lightning.lm.work import Work, suffix_work


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
def score_answers(
    lm: EditableLM, queries: Sequence[Query], batch_tokens: int, done: Callable[[int], object] = int
) -> list[AnswerLogprobs]:
    """Score the answers to queries; a prompt is read once, however many answers to it are scored.

    Args:
        lm: The model.
        queries: Prompts with answers.
        batch_tokens: Maximum number of tokens per batch, padding included; cached states of prompts come on top.
        done: Called after each batch with the number of tokens that were read, apart from padding.

    Returns:
        One entry for each query, on the CPU.
    """
    texts, by_prompt = _read(lm.tokenizer, queries)
    scores: dict[Query, AnswerLogprobs] = {}
    for groups in _batches(by_prompt, texts, batch_tokens):
        some = [query for group in groups for query in group]
        prompts = [i for i, group in enumerate(groups) for _ in group]
        scores |= zip(some, _scored(lm, [texts[query] for query in some], prompts), strict=True)
        answers = sum(len(texts[query].ids) - texts[query].answer for query in some)
        done(answers + sum(texts[group[0]].answer for group in groups))
    return [scores[query] for query in queries]


def answers_work(tokenizer: PreTrainedTokenizerBase, queries: Sequence[Query], batch_tokens: int) -> Work:
    """What :func:`score_answers` computes for these arguments."""
    texts, by_prompt = _read(tokenizer, queries)
    work = Work()
    for groups in _batches(by_prompt, texts, batch_tokens):
        rows = _rows(
            [texts[query] for group in groups for query in group], [i for i, g in enumerate(groups) for _ in g]
        )
        places = sum(len(text.ids) - text.lookup for text in rows.values())
        if len(rows) > len(groups):
            work += suffix_work(list(rows.values()), [prompt for prompt, _ in rows])
        else:
            work += Work(len(rows) * max(len(text.ids) for text in rows.values()), 0, 1)
        work += Work(places=places)
    return work


def _read(
    tokenizer: PreTrainedTokenizerBase, queries: Sequence[Query]
) -> tuple[dict[Query, TokenizedText], list[list[Query]]]:
    """Queries without repetition, as tokens, and those of each prompt."""
    different = list(dict.fromkeys(queries))
    texts = dict(zip(different, tokenize_all(tokenizer, different), strict=True))
    by_prompt: dict[tuple[int, ...], list[Query]] = {}
    for query, text in texts.items():
        by_prompt.setdefault(tuple(text.ids[: text.answer]), []).append(query)
    return texts, list(by_prompt.values())


def _batches(
    groups: Sequence[list[Query]], texts: Mapping[Query, TokenizedText], batch_tokens: int
) -> Iterator[list[list[Query]]]:
    """Groups of queries with the same prompt, in batches of prompts of similar length."""

    def size(batch: Sequence[Sequence[Query]]) -> int:
        read = [texts[query] for group in batch for query in group]
        prompt, answer = max(text.answer for text in read), max(len(text.ids) - text.answer for text in read)
        return len(batch) * prompt + len(read) * answer

    batch: list[list[Query]] = []
    for group in sorted(groups, key=lambda group: texts[group[0]].answer):
        if batch and size([*batch, group]) > batch_tokens:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _rows(texts: Sequence[TokenizedText], prompts: Sequence[int]) -> dict[tuple[int, tuple[int, ...]], TokenizedText]:
    """What is read for texts whose prompts are numbered, from their answers on; by number and ids.

    Nothing is predicted after an answer's last token: texts that differ there only are one row.
    """
    return {
        (prompt, tuple(text.ids[:-1])): TokenizedText(text.ids[:-1], text.answer - 1, len(text.ids) - 1)
        for prompt, text in zip(prompts, texts, strict=True)
    }


def _scored(lm: EditableLM, texts: Sequence[TokenizedText], prompts: Sequence[int]) -> list[AnswerLogprobs]:
    """Scores of texts whose prompts are numbered from 0; equal numbers for equal prompts."""
    rows = _rows(texts, prompts)
    batch = collate(list(rows.values()), lm.tokenizer).to(lm.device)
    index = torch.arange(batch.input_ids.shape[1], device=lm.device)
    places = ((index >= batch.lookup[:, None]) & (index < batch.lengths[:, None])).nonzero(as_tuple=True)
    if len(rows) > len(set(prompts)):
        numbers = torch.tensor([prompt for prompt, _ in rows], device=lm.device)
        logits = after_shared_prefix(lm, batch, numbers).logits(lm, *places)
    else:
        logits = lm.logits(batch, *places)
    answers = [text.ids[text.answer :] for text in texts]
    starts = dict(zip(rows, accumulate((batch.lengths - batch.lookup).tolist(), initial=0), strict=False))
    read = [
        starts[prompt, tuple(text.ids[:-1])] + i
        for prompt, text in zip(prompts, texts, strict=True)
        for i in range(len(text.ids) - text.answer)
    ]
    tokens = [token for answer in answers for token in answer]
    by_token = _score_tokens(log_softmax(logits, -1), torch.tensor(read), torch.tensor(tokens))
    parts = (torch.split(values, [len(answer) for answer in answers]) for values in by_token)
    return [AnswerLogprobs(*part) for part in zip(*parts, strict=True)]


def _score_tokens(log_p: Tensor, places: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of tokens, each at one of the places whose log-probabilities are given (places x vocabulary), on the CPU.

    By the names of :class:`AnswerLogprobs`.
    """
    places, tokens = places.to(log_p.device), tokens.to(log_p.device)
    p = log_p.exp()
    mean = (p * log_p).sum(1)
    deviation = ((p * log_p.square()).sum(1) - mean.square()).clamp(min=0).sqrt().clamp(min=1e-6)
    own = log_p[places, tokens]
    standardized = (own - mean[places]) / deviation[places]
    return own.double().cpu(), (log_p.argmax(1)[places] == tokens).cpu(), standardized.double().cpu()


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
