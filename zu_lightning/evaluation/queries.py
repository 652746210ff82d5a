"""Scores of single queries, and what follows from them: sums of single facts, and scores that compare queries."""

import math
from collections.abc import Iterable, Mapping
from enum import IntEnum

import torch
from torch import Tensor

from zu_lightning.evaluation.score_table import SCORES, SURE
from zu_lightning.runtime.distributed import all_reduce, all_reduce_max

LEAK = "leak_nats"
"""The score of how much likelier answers are than for made-up names; also the metric of the queries about these."""


class Column(IntEnum):
    """Columns of a table of queries. A document of prose counts as a query whose answer is never given."""

    FACT = 0
    """Which fact, or which document, the query belongs to, from 0."""
    TOKENS = 1
    """Number of tokens of the answer; 0 if the query was not asked."""
    GIVEN = 2
    """Whether greedy decoding gives the whole answer, 0 or 1."""
    PROBABILITY = 3
    """Probability of the whole answer, 0..1."""
    LOG_PROBABILITY = 4
    """Its logarithm, the sum over tokens, in nats."""
    MARGIN = 5
    """See :class:`zu_lightning.evaluation.functional.AnswerScores`, in nats."""


QueryTables = Mapping[str, Tensor]
"""By metric, queries x columns, float64."""


class QueryScores:
    """Tables of the queries of an evaluation, filled batch by batch.

    Args:
        metrics: Names of all metrics, the same ones in every process.
    """

    def __init__(self, metrics: Iterable[str]) -> None:
        self.tables = {name: torch.zeros(0, len(Column), dtype=torch.float64) for name in metrics}
        """As long as the queries that this process has seen."""

    def add(self, metric: str, query: Tensor, columns: Mapping[Column, Tensor]) -> None:
        """Fill the rows of some queries, by their indices; columns that are not given stay 0."""
        table, query = self.tables[metric], query.cpu()
        self.tables[metric] = table = _longer(table, int(query.max()) + 1)
        for column, values in columns.items():
            table[query, column] = values.double().cpu()

    def over_all_processes(self, device: torch.device) -> dict[str, Tensor]:
        """The tables with the rows of all processes, on the CPU; metrics that saw nothing are left out."""
        lengths = all_reduce_max(torch.tensor([len(table) for table in self.tables.values()], device=device)).tolist()
        return {
            name: all_reduce(_longer(own, length).to(device))[0].cpu()
            for (name, own), length in zip(self.tables.items(), lengths, strict=True)
            if length
        }


def _longer(table: Tensor, length: int) -> Tensor:
    """The table with rows of zeros up to a length, in memory of its own."""
    return torch.cat([table, table.new_zeros(max(0, length - len(table)), len(Column))])


def fact_sums(tables: QueryTables, before: QueryTables | None = None) -> dict[str, Tensor]:
    """Sums over each fact's queries, see :mod:`zu_lightning.evaluation.intervals`.

    Args:
        tables: Of a model.
        before: Of the model before, which says which queries it was sure of.

    Returns:
        By score, facts x 3; of the leak the value, 0, and 1, or zeros for facts without it.
    """
    every = {**tables, **sure_tables(tables, before or {})}
    sums = {name: _sums(name, table) for name, table in every.items() if name != LEAK}
    leak = leaks(tables)
    measured = ~leak.isnan()
    if measured.any():
        sums[LEAK] = torch.stack([leak.where(measured, 0), torch.zeros_like(leak), measured.double()], 1)
    return sums


def _sums(name: str, table: Tensor) -> Tensor:
    """Answers given, their probability, and answers asked for; of documents nats, 0, and tokens."""
    tokens, asked = table[:, Column.TOKENS], (table[:, Column.TOKENS] > 0).double()
    if name == "perplexity":
        parts = -table[:, Column.LOG_PROBABILITY], torch.zeros_like(tokens), tokens
    else:
        parts = table[:, Column.GIVEN], table[:, Column.PROBABILITY], asked
    fact = table[:, Column.FACT].long()
    return table.new_zeros(int(fact.max()) + 1, len(parts)).index_add(0, fact, torch.stack(parts, 1))


def sure_tables(tables: QueryTables, before: QueryTables) -> dict[str, Tensor]:
    """By score over queries that the model before is sure of, their part of the table of all.

    Without any such queries, or if the model before was asked others, there is no table.
    """
    found = {}
    for score in SCORES:
        now, was = tables.get(score.sure_of or ""), before.get(score.sure_of or "")
        if now is None or was is None or not torch.equal(now[:, : Column.GIVEN], was[:, : Column.GIVEN]):
            continue
        sure = (was[:, Column.TOKENS] > 0) & (was[:, Column.MARGIN] >= SURE)
        if sure.any():
            found[score.name] = now[sure]
    return found


def leaks(tables: QueryTables) -> Tensor:
    """How much likelier a model finds each fact's answer after its prompt than after that with made-up names.

    It is log p(answer | subject) - log mean over names of p(answer | name), in nats.

    Returns:
        Facts, float64; NaN without made-up names.
    """
    none = torch.zeros(0, len(Column), dtype=torch.float64)
    own, others = (_asked(tables.get(name, none)) for name in ("efficacy", LEAK))
    found = torch.full((len(tables.get("efficacy", none)),), torch.nan, dtype=torch.float64)
    for row in own:
        fact = int(row[Column.FACT])
        by_name = others[others[:, Column.FACT] == fact, Column.LOG_PROBABILITY]
        if len(by_name):
            found[fact] = row[Column.LOG_PROBABILITY] - by_name.logsumexp(0) + math.log(len(by_name))
    return found


def _asked(table: Tensor) -> Tensor:
    return table[table[:, Column.TOKENS] > 0]


def scores_of(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """The scores that compare queries, by name; those that all queries add to are :mod:`torchmetrics`'.

    Args:
        sums: What :func:`fact_sums` gives.
    """
    scores: dict[str, float] = {}
    for score in SCORES:
        if score.sure_of and score.name in sums:
            given, probability, asked = sums[score.name].sum(0).tolist()
            scores |= {score.name: 100 * given / asked, f"{score.name}_probability": probability / asked}
    if LEAK in sums:
        leak = sums[LEAK][sums[LEAK][:, 2] > 0, 0]
        scores |= {LEAK: leak.mean().item(), f"{LEAK}_worst": leak.max().item()}
    return scores
