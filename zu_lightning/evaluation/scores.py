"""Evaluation of a request: its queries, in batches, and the metric of each batch."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from zu_lightning.evaluation.functional import answer_scores, token_nll
from zu_lightning.evaluation.metrics import AnswerMetric, Perplexity
from zu_lightning.evaluation.queries import LEAK, Column, QueryScores, QueryTables, fact_sums, scores_of
from zu_lightning.evaluation.score_table import SCORES
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import ReadingOptions
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import TokenBatch, check_lengths, collate, tokenize_all
from zu_lightning.runtime.files import digest


@dataclass(frozen=True)
class EvaluationBatch:
    """Texts for one metric.

    Attributes:
        metric: Name of the metric, or of the score that compares its queries with others.
        texts: Prompts with answers, or prose whose every token but the first is an "answer".
        fact: Which fact, or which document, each text belongs to, from 0.
        query: Which of the metric's queries, or documents, each text is, from 0.
    """

    metric: str
    texts: TokenBatch
    fact: Tensor
    query: Tensor


def evaluation_metrics() -> MetricCollection:
    """One fresh metric for each name that an :class:`EvaluationBatch` may have."""
    names = [score.name for score in SCORES if score.unit == "percent" and not score.sure_of]
    answers = {name: AnswerMetric(name) for name in names}
    return MetricCollection({**answers, "perplexity": Perplexity()}, compute_groups=False)


def query_scores() -> QueryScores:
    """Fresh tables for the queries of an evaluation."""
    return QueryScores([*map(str, evaluation_metrics()), LEAK])


def evaluation_batches(
    lm: EditableLM,
    forget: Sequence[Fact],
    retain: Sequence[Fact],
    heldout: Iterable[str],
    reading: ReadingOptions | None = None,
    protect: Sequence[Fact] = (),
    same_subject: Sequence[Fact] = (),
    unknown_subjects: Sequence[Sequence[str]] = (),
) -> list[EvaluationBatch]:
    """All batches of an evaluation.

    A neighbor that is itself one of the forgotten facts (the forgotten subject with its forgotten target) is left out
    of Specificity.

    Args:
        lm: The model.
        forget: Facts to forget.
        retain: Facts to keep that the method never saw.
        heldout: Text for the perplexity, one document each.
        protect: Facts to keep that the method was given.
        same_subject: Other facts about the forgotten subjects, whether or not the method was given them.
        unknown_subjects: For each fact to forget, or for the first of them, made-up names: how likely its answer is for
            them says how much of it leaks. None for facts without a subject.
        reading: Length of documents and of batches; all tokens of prose need logits, and vocabularies are large.

    Returns:
        Batches, each for one metric, the largest first: every N-th of them is then a fair share.

    Raises:
        InputError: A prompt with its answer is longer than the model's context.
    """
    reading = reading or ReadingOptions()
    forgotten = {(fact.subject, fact.target) for fact in forget if fact.subject}
    first_with = {query: i for i, fact in reversed(list(enumerate(forget))) for query in fact.multi_hop}
    queries = {
        "efficacy": [(i, fact.query) for i, fact in enumerate(forget)],
        "generalization": [(i, query) for i, fact in enumerate(forget) for query in fact.paraphrased],
        "specificity": [
            (i, query)
            for i, fact in enumerate(forget)
            for query in fact.neighbors
            if not any(subject in query.prompt and query.target == target for subject, target in forgotten)
        ],
        "multi_hop": [(i, query) for query, i in first_with.items()],
        "retain": [(i, fact.query) for i, fact in enumerate(retain)],
        "same_subject": [(i, fact.query) for i, fact in enumerate(same_subject)],
        "protected": [(i, fact.query) for i, fact in enumerate(protect)],
        LEAK: [
            (i, fact.about(name).query)
            for i, (fact, names) in enumerate(zip(forget, unknown_subjects, strict=False))
            for name in names
        ],
    }
    texts = {name: tokenize_all(lm.tokenizer, [query for _, query in asked]) for name, asked in queries.items()}
    for name, tokenized in texts.items():
        names = [f"the prompt {query.prompt[:60]!r}... with its answer ({name})" for _, query in queries[name]]
        check_lengths(tokenized, names, lm.context_length)
    documents = tokenize_all(lm.tokenizer, heldout, min(reading.max_length, lm.context_length))
    texts["perplexity"] = [replace(document, answer=1) for document in documents if len(document.ids) > 1]
    about = {name: [i for i, _ in asked] for name, asked in queries.items()}
    about["perplexity"] = list(range(len(texts["perplexity"])))
    found = [
        EvaluationBatch(
            name,
            collate([tokenized[i] for i in indices], lm.tokenizer),
            torch.tensor([about[name][i] for i in indices]),
            torch.tensor(indices),
        )
        for name, tokenized in texts.items()
        for indices in batches(tokenized, reading.batch_tokens)
    ]
    return sorted(found, key=lambda batch: batch.texts.input_ids.numel(), reverse=True)


def batches_digest(evaluation: Iterable[EvaluationBatch | None]) -> str:
    """Digest of an evaluation: of every token, and the metric that it belongs to."""
    parts: list[object] = []
    for batch in evaluation:
        if batch is not None:
            tensors = (batch.fact, batch.query, *(getattr(batch.texts, field.name) for field in fields(batch.texts)))
            parts += [batch.metric, *(part for tensor in tensors for part in (tuple(tensor.shape), tensor.tolist()))]
    return digest(*parts)


@torch.no_grad()
def update_metric(
    lm: EditableLM, metrics: MetricCollection, batch: EvaluationBatch, queries: QueryScores | None = None
) -> None:
    """Run the model on a batch and add the result to the batch's metric, and to the scores of single queries."""
    texts = batch.texts.to(lm.device)
    rows, positions, tokens = texts.answer_positions()
    logits, count = lm.logits(texts, rows, positions), len(texts.lengths)
    lengths = rows.bincount(minlength=count)
    columns = {Column.FACT: batch.fact, Column.TOKENS: lengths}
    if batch.metric == "perplexity":
        nll = token_nll(logits, tokens)
        metrics[batch.metric].update(nll)
        columns[Column.LOG_PROBABILITY] = -nll.new_zeros(count).index_add(0, rows, nll)
    else:
        scores = answer_scores(logits, tokens, rows, count)
        if batch.metric != LEAK:
            metrics[batch.metric].update(scores)
        columns |= {
            Column.GIVEN: scores.exact,
            Column.PROBABILITY: scores.probability,
            Column.LOG_PROBABILITY: scores.log_probability * lengths,
            Column.MARGIN: scores.margin,
        }
    if queries is not None:
        queries.add(batch.metric, batch.query, columns)


def compute_metrics(metrics: MetricCollection) -> dict[str, float]:
    """Every score by name, as in ``metrics.json``; metrics without any text are left out."""
    scores: dict[str, float] = {}
    with warnings.catch_warnings():
        # A process without a share of some metric still takes part in its sum.
        warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
        for metric in metrics.values():
            scores |= {name: value.item() for name, value in metric.compute().items()}
    return scores


class Evaluation(NamedTuple):
    """What an evaluation has found, in plain containers.

    Attributes:
        scores: By name: percent for exact matches, 0..1 for probabilities, nats, and the perplexity.
        queries: By metric, a table of its queries (:mod:`zu_lightning.evaluation.queries`).
    """

    scores: dict[str, float]
    queries: dict[str, Tensor]

    @classmethod
    def of(
        cls, metrics: MetricCollection, queries: dict[str, Tensor], before: QueryTables | None = None
    ) -> "Evaluation":
        """All scores, those that compare queries with others included.

        Args:
            metrics: Once all batches are added.
            queries: Of all processes.
            before: Those of the model before the edit, which say what it was sure of.
        """
        return cls(compute_metrics(metrics) | scores_of(fact_sums(queries, before)), queries)


def evaluate_queries(
    lm: EditableLM, evaluation: Iterable[EvaluationBatch], before: QueryTables | None = None
) -> Evaluation:
    """All scores of one evaluation, and its queries; the arguments are those of :func:`evaluate`."""
    metrics, queries = evaluation_metrics().to(lm.device), query_scores()
    for batch in evaluation:
        update_metric(lm, metrics, batch, queries)
    return Evaluation.of(metrics, queries.over_all_processes(lm.device), before)


def evaluate(
    lm: EditableLM, evaluation: Iterable[EvaluationBatch], before: QueryTables | None = None
) -> dict[str, float]:
    """All scores of one evaluation: percent for exact matches, 0..1 for probabilities, nats, and the perplexity.

    Args:
        lm: The model.
        evaluation: Batches, in a run with several processes this process's share.
        before: The ``queries`` that :func:`evaluate_queries` gave for the same batches before the edit; without them,
            there are no scores over the queries that the model before was sure of.
    """
    return evaluate_queries(lm, evaluation, before).scores
