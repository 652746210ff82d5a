"""Keys and hidden states at the lookup tokens of facts.

With several processes, each gets the columns of its shard of n facts
(:func:`zu_lightning.runtime.distributed.rank_slice`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.suffix import after_shared_prefix
from zu_lightning.lm.tokens import collate, tokenize_all
from zu_lightning.runtime.distributed import all_to_all, rank_shard


@dataclass(frozen=True)
class VariedKeys:
    """Keys of n facts over their prompt variants.

    Attributes:
        mean: K, d_in x n: each fact's mean over its variants.
        deviations: d_in x n x variants: each key minus that mean, divided by the root of the number of variants, so
            that the sum of d d^T over a fact's variants is the covariance of its key; zero where a fact has fewer
            variants than others.
    """

    mean: Tensor
    deviations: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "VariedKeys":
        """From a row for each fact, n x (1 + variants) x d_in: the mean, then the deviations."""
        return cls(rows[:, 0].mT, rows[:, 1:].permute(2, 0, 1))

    def rows(self) -> Tensor:
        """The inverse of :meth:`of`."""
        return torch.cat([self.mean.mT[:, None], self.deviations.permute(1, 2, 0)], 1)


def lookup_keys(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    rephrased: Mapping[str, Sequence[Fact]] | None = None,
) -> Tensor:
    """Keys of the facts at one layer: :func:`mean_keys` over contexts and rephrased prompts.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts before the prompt, the first one empty.
        rephrased: By a fact's id, the fact with other prompts, which count like contexts.

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
    """Keys of the facts at one layer, averaged over prompt variants, of which the bare prompt weighs half.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        variants: Their prompt variants.
        batch_tokens: Maximum number of tokens per batch, padding included.

    Returns:
        K, d_in x n, float64.
    """

    def parts() -> Iterator[tuple[Sequence[int], Tensor]]:
        for batch in _batches(lm, facts, layer, variants, batch_tokens):
            others = batch.fact.bincount()[batch.fact] - 1
            share = torch.where(batch.variant == 0, torch.where(others == 0, 1.0, 0.5), 0.5 / others).double()
            yield batch.facts, batch.sums(share)

    return all_to_all(parts(), _no_rows(lm, lm.weight(layer).shape[1]), len(facts)).mT


def varied_keys(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    variants: PromptVariants,
    batch_tokens: int = BATCH_TOKENS,
) -> VariedKeys:
    """Mean and covariance of each fact's key over its prompt variants, which weigh equally.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        variants: Their prompt variants.
        batch_tokens: Maximum number of tokens per batch, padding included.

    Returns:
        Means and deviations, float64.
    """
    count, width = variants.count(facts), lm.weight(layer).shape[1]

    def parts() -> Iterator[tuple[Sequence[int], Tensor]]:
        for batch in _batches(lm, facts, layer, variants, batch_tokens):
            share = 1.0 / batch.fact.bincount()[batch.fact].double()
            mean = batch.sums(share)
            rows = mean.new_zeros(len(mean), 1 + count, width)
            rows[:, 0] = mean
            rows[batch.fact, 1 + batch.variant] = share.sqrt()[:, None] * (batch.keys - mean[batch.fact])
            yield batch.facts, rows

    return VariedKeys.of(all_to_all(parts(), _no_rows(lm, 1 + count, width), len(facts)))


@dataclass(frozen=True)
class _KeyBatch:
    """Keys of a batch of facts, a row for each prompt variant of each fact."""

    facts: list[int]
    """Indices of the facts of the batch."""
    variant: Tensor
    """Rows, number of the variant; 0 for the bare prompt."""
    fact: Tensor
    """Rows, which fact of the batch."""
    keys: Tensor
    """Rows x d_in, float64."""

    def sums(self, share: Tensor) -> Tensor:
        """For each fact of the batch the sum of its keys, weighted by a share for each row."""
        total = torch.zeros(len(self.facts), self.keys.shape[1], dtype=torch.float64, device=self.keys.device)
        return total.index_add(0, self.fact, share[:, None] * self.keys)


def _batches(
    lm: EditableLM, facts: Sequence[Fact], layer: int, variants: PromptVariants, batch_tokens: int
) -> Iterator[_KeyBatch]:
    """This rank's batches; each holds all variants of its facts, whose shared contexts are computed once."""
    after_context = replace(variants, contexts=("",))
    longest = tokenize_all(lm.tokenizer, [after_context.longest(fact) for fact in facts])
    for indices in rank_shard(batches(longest, max(1, batch_tokens // variants.count(facts)))):
        rows = variants.rows([facts[i] for i in indices])
        texts = collate(tokenize_all(lm.tokenizer, [row.prompt() for row in rows]), lm.tokenizer).to(lm.device)
        variant, fact = torch.tensor([(row.number, row.position) for row in rows], device=lm.device).T
        suffix = after_shared_prefix(lm, texts, variant)
        (record,) = suffix.record(lm, [lm.projections[layer]])
        yield _KeyBatch(indices, variant, fact, record.input[range(len(rows)), texts.lookup - suffix.start].double())


def layer_outputs(lm: EditableLM, facts: Sequence[Fact], layer: int, batch_tokens: int = BATCH_TOKENS) -> Tensor:
    """Hidden states after a layer at the lookup tokens of the bare prompts, d_out x n, float64."""
    texts = tokenize_all(lm.tokenizer, facts)

    def parts() -> Iterator[tuple[Sequence[int], Tensor]]:
        for indices, batch in batched(lm, texts, batch_tokens, sharded=True):
            (record,) = lm.record(batch, [lm.layers[layer]])
            yield indices, record.output[range(len(indices)), batch.lookup].double()

    return all_to_all(parts(), _no_rows(lm, lm.weight(layer).shape[0]), len(facts)).mT


def _no_rows(lm: EditableLM, *shape: int) -> Tensor:
    return torch.zeros(0, *shape, dtype=torch.float64, device=lm.device)
