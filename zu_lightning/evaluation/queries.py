"""Scores of single queries: what the scores of single facts, intervals, and comparisons with the model before need."""

from collections.abc import Iterable, Mapping
from enum import IntEnum

import torch
from torch import Tensor

from zu_lightning.runtime.distributed import all_reduce, all_reduce_max


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


def fact_sums(tables: QueryTables) -> dict[str, Tensor]:
    """By score, the sums over each fact's queries, facts x 3, see :mod:`zu_lightning.evaluation.intervals`."""
    sums = {}
    for name, table in tables.items():
        tokens, asked = table[:, Column.TOKENS], (table[:, Column.TOKENS] > 0).double()
        if name == "perplexity":
            parts = -table[:, Column.LOG_PROBABILITY], torch.zeros_like(tokens), tokens
        else:
            parts = table[:, Column.GIVEN], table[:, Column.PROBABILITY], asked
        fact = table[:, Column.FACT].long()
        sums[name] = table.new_zeros(int(fact.max()) + 1, len(parts)).index_add(0, fact, torch.stack(parts, 1))
    return sums
