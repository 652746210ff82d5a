"""Keys and hidden states at the lookup tokens of facts.

With several processes, each gets the columns of its share of n facts
(:func:`zu_lightning.runtime.distributed.rank_slice`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import BATCH_TOKENS, batched
from zu_lightning.lm.suffix import after_shared_prefix
from zu_lightning.lm.tokens import Prompt, collate, tokenize_all
from zu_lightning.runtime.distributed import all_to_all, rank_shard


@dataclass(frozen=True)
class VariedKeys:
    """Keys of n facts, each of which is put in several ways.

    Attributes:
        mean: K, d_in x n: each fact's mean over its ways.
        deviations: d_in x n x ways: each key minus that mean, divided by the root of the number of ways, so that the
            sum of d d^T over a fact's ways is the covariance of its key; zero where a fact has fewer ways than others.
    """

    mean: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "VariedKeys":
        """From a row for each fact, n x (1 + ways) x d_in: the mean, then the deviations."""
        return cls(rows[:, 0].mT, rows[:, 1:].permute(2, 0, 1))

    def rows(self) -> Tensor:
        """What :meth:`of` takes."""
        return torch.cat([self.mean.mT[:, None], self.deviations.permute(1, 2, 0)], 1)


def lookup_keys(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    rephrased: Mapping[str, Sequence[Fact]] | None = None,
) -> Tensor:
    """Keys of the facts at one layer, averaged over the ways to put them; the bare prompt weighs half.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts to put before the prompt, the first one empty.
        rephrased: For a fact's id, the fact in other words, which count like contexts.

    Returns:
        K, d_in x n, float64.
    """
    return mean_keys(lm, facts, layer, PromptVariants(contexts, rephrased or {}))


def mean_keys(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    variants: PromptVariants,
    batch_tokens: int = BATCH_TOKENS,
) -> Tensor:
    """The same for any prompt variants: K, d_in x n, float64."""

    def found() -> Iterator[tuple[Sequence[int], Tensor]]:
        for put in _keys_as_put(lm, facts, layer, variants, batch_tokens):
            rest = put.fact.bincount()[put.fact] - 1
            share = torch.where(put.number == 0, torch.where(rest == 0, 1.0, 0.5), 0.5 / rest).double()
            yield put.facts, put.summed(share)

    return all_to_all(found(), _no_rows(lm, lm.weight(layer).shape[1]), len(facts)).mT


def varied_keys(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    variants: PromptVariants,
    batch_tokens: int = BATCH_TOKENS,
) -> VariedKeys:
    """Keys of the facts at one layer for all variants of their prompts, which have equal weights.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        variants: Their prompt variants.
        batch_tokens: Maximum number of tokens per batch.

    Returns:
        Means and deviations, float64.
    """
    ways, width = max((len(variants.of(fact)) for fact in facts), default=1), lm.weight(layer).shape[1]

    def found() -> Iterator[tuple[Sequence[int], Tensor]]:
        for put in _keys_as_put(lm, facts, layer, variants, batch_tokens):
            share = 1.0 / put.fact.bincount()[put.fact].double()
            mean = put.summed(share)
            rows = mean.new_zeros(len(mean), 1 + ways, width)
            rows[:, 0] = mean
            rows[put.fact, 1 + put.number] = share.sqrt()[:, None] * (put.keys - mean[put.fact])
            yield put.facts, rows

    return VariedKeys.of(all_to_all(found(), _no_rows(lm, 1 + ways, width), len(facts)))


@dataclass(frozen=True)
class _KeysAsPut:
    """Keys of a batch of facts, one for each way in which each of them is put."""

    facts: list[int]
    """Indices of the facts of the batch."""
    number: Tensor
    """Rows, in which way; 0 for the bare prompt."""
    fact: Tensor
    """Rows, which fact of the batch."""
    keys: Tensor
    """Rows x d_in, float64."""

    def summed(self, share: Tensor) -> Tensor:
        """For each fact of the batch the sum of its keys, weighted by a share for each row."""
        total = torch.zeros(len(self.facts), self.keys.shape[1], dtype=torch.float64, device=self.keys.device)
        return total.index_add(0, self.fact, share[:, None] * self.keys)


def _keys_as_put(
    lm: EditableLM, facts: Sequence[Fact], layer: int, variants: PromptVariants, batch_tokens: int
) -> Iterator[_KeysAsPut]:
    """This process's batches of facts."""
    ways = max((len(variants.of(fact)) for fact in facts), default=1)
    longest = tokenize_all(lm.tokenizer, [_longest(fact, variants) for fact in facts])
    for indices in rank_shard(batches(longest, max(1, batch_tokens // ways))):
        put = variants.rows([facts[i] for i in indices])
        texts = tokenize_all(lm.tokenizer, [Prompt.about(one.fact, context=one.context) for one in put])
        batch = collate(texts, lm.tokenizer).to(lm.device)
        number, fact = torch.tensor([(one.number, one.position) for one in put], device=lm.device).T
        suffix = after_shared_prefix(lm, batch, number)
        (record,) = suffix.record(lm, [lm.projections[layer]])
        at_lookup = record.input[range(len(texts)), batch.lookup - suffix.start].double()
        yield _KeysAsPut(indices, number, fact, at_lookup)


def _longest(fact: Fact, variants: PromptVariants) -> Prompt:
    """A fact's longest text, but for contexts that all facts share: those are read once for all."""
    own = replace(variants, contexts=("",))
    context, put = max(own.of(fact), key=lambda way: len(way[0]) + len(way[1].prompt))
    return Prompt.about(put, context=context)


def layer_outputs(lm: EditableLM, facts: Sequence[Fact], layer: int, batch_tokens: int = BATCH_TOKENS) -> Tensor:
    """Hidden states after a layer at the lookup tokens of the bare prompts, d_out x n, float64."""
    texts = tokenize_all(lm.tokenizer, facts)

    def found() -> Iterator[tuple[Sequence[int], Tensor]]:
        for indices, batch in batched(lm, texts, batch_tokens, sharded=True):
            (record,) = lm.record(batch, [lm.layers[layer]])
            yield indices, record.output[range(len(indices)), batch.lookup].double()

    return all_to_all(found(), _no_rows(lm, lm.weight(layer).shape[0]), len(facts)).mT


def _no_rows(lm: EditableLM, *shape: int) -> Tensor:
    return torch.zeros(0, *shape, dtype=torch.float64, device=lm.device)
