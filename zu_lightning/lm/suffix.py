"""Forward passes over the end of a text only, with cached keys and values for its beginning.

Attention is causal: a change at a token has no effect on earlier tokens, and texts with a common prefix have the same
states within it.

Shapes: R rows (texts), T positions of a row from where it starts, S positions of the cached prefix, H heads, D width,
P places (each a row and a position).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from zu_lightning.lm import hooks
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.hooks import Record
from zu_lightning.lm.tokens import PaddedTokens, TokenBatch

KeysAndValues = tuple[tuple[Tensor, Tensor], ...]
"""Attention's keys and values of several layers, each R x H x S x width of a head."""


@dataclass(frozen=True)
class Suffix:
    """Texts from some token on, with cached keys and values of the tokens before it.

    Attributes:
        layer: Layer at which a pass starts; the number of layers to start from the last one's output.
        hidden: Input of that layer, R x T x D; ``None`` at layer 0 for the embeddings.
        input_ids: R x T.
        start: R, position in its text at which each row begins.
        attention_mask: R x (S + T), 0 for padding.
        prefix: Keys and values of the tokens before ``start``, for ``layer`` and those above.
    """

    layer: int
    hidden: Tensor | None
    input_ids: Tensor
    start: Tensor
    attention_mask: Tensor
    prefix: KeysAndValues

    @property
    def prefix_length(self) -> int:
        """S, cached tokens of each row, masked ones included."""
        return self.attention_mask.shape[1] - self.input_ids.shape[1]

    @property
    def lengths(self) -> Tensor:
        """R, number of tokens of each row from ``start`` on."""
        return self.attention_mask[:, self.prefix_length :].sum(1)

    def select(self, rows: Tensor) -> "Suffix":
        """Some rows, by their indices, without padding that none of them needs."""
        mask, length = self.attention_mask[rows], int(self.lengths[rows].max()) if len(rows) else 0
        before, own = mask[:, : self.prefix_length], mask[:, self.prefix_length :][:, :length]
        columns = before.any(0).nonzero().squeeze(1)
        return Suffix(
            self.layer,
            None if self.hidden is None else self.hidden[rows, :length],
            self.input_ids[rows, :length],
            self.start[rows],
            torch.cat([before[:, columns], own], 1),
            tuple((_part(keys, rows, columns), _part(values, rows, columns)) for keys, values in self.prefix),
        )

    def logits(self, lm: EditableLM, rows: Tensor, positions: Tensor, *, watched: Sequence[nn.Module] = ()) -> Tensor:
        """Next-token logits at the given places, P x vocabulary, float32; positions count from the start of the text.

        ``watched`` are modules with a hook on them, as in :meth:`EditableLM.logits`.
        """
        return self._logits(lm, rows, positions, self._cache(), watched)

    def record(self, lm: EditableLM, modules: Sequence[nn.Module]) -> list[Record]:
        """Inputs and outputs of modules (R x T x D); nothing above the last of them is computed."""
        nowhere = self.start[:0]
        with torch.no_grad(), hooks.recording(modules, len(self.input_ids), lm.device, stop=True) as records:
            self._logits(lm, nowhere, nowhere, self._cache(), modules)
        return records

    def seen(
        self, lm: EditableLM, modules: Sequence[nn.Module], rows: Tensor, positions: Tensor
    ) -> tuple[list[Record], Tensor, KeysAndValues]:
        """A pass without gradients: records of modules, logits, and keys and values of all tokens in all layers."""
        cache = self._cache()
        with torch.no_grad(), hooks.recording(modules, len(self.input_ids), lm.device) as records:
            logits = self._logits(lm, rows, positions, cache, modules)
        return records, logits, tuple((layer.keys, layer.values) for layer in cache.layers)

    def later(self, lookup: Tensor, layer: int, hidden: Tensor, cached: KeysAndValues) -> "Suffix":
        """The part from later tokens on, after a pass of :meth:`seen`.

        Args:
            lookup: R, position in its text at which each row will begin.
            layer: Layer at which passes over it will start.
            hidden: Input of that layer in the pass.
            cached: Keys and values of the pass.

        Returns:
            The shorter suffix.
        """
        before = lookup - self.start
        between, own = int(before.max()), self.attention_mask[:, self.prefix_length :]
        columns, real = _tails(before, own.sum(1), own.shape[1])
        every_row = torch.arange(len(columns), device=lookup.device)[:, None]
        is_before = torch.arange(between, device=lookup.device) < before[:, None]
        end = self.prefix_length + between
        return Suffix(
            layer=layer,
            hidden=hidden[every_row, columns],
            input_ids=self.input_ids.gather(1, columns),
            start=lookup,
            attention_mask=torch.cat([self.attention_mask[:, : self.prefix_length], is_before, real], 1).long(),
            prefix=tuple((keys[:, :, :end], values[:, :, :end]) for keys, values in cached[layer:]),
        )

    def _logits(
        self, lm: EditableLM, rows: Tensor, positions: Tensor, cache: Any, watched: Sequence[nn.Module]
    ) -> Tensor:
        offsets = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        # Padding may lie beyond the model's context.
        position_ids = (self.start[:, None] + offsets).clamp(max=lm.context_length - 1)
        with lm.resumed(self.layer, self.hidden):
            return lm.logits(
                PaddedTokens(self.input_ids, self.attention_mask),
                rows,
                positions - self.start[rows],
                watched=watched,
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            )

    def _cache(self) -> Any:
        # The first layer's entry tells transformers how long the prefix is, even if that layer is skipped.
        skipped = self.attention_mask.new_zeros(1, 1, 1, 1).expand(len(self.input_ids), 1, self.prefix_length, 1)
        cache: Any = DynamicCache()
        for i, (keys, values) in enumerate([(skipped, skipped)] * self.layer + list(self.prefix)):
            cache.update(keys[:, :, :0], values[:, :, :0], i)
            cache.layers[i].keys, cache.layers[i].values = keys, values
        return cache


def after_shared_prefix(lm: EditableLM, batch: TokenBatch, group: Tensor) -> Suffix:
    """The texts of each group from their first difference or lookup token on; their common prefix is computed once.

    Args:
        lm: The model.
        batch: Texts.
        group: R, each row's group, from 0.

    Returns:
        The suffix, at layer 0.
    """
    first = [int((group == g).nonzero()[0]) for g in range(int(group.max()) + 1)]
    ids = batch.input_ids
    agrees = (ids == ids[first][group]).long().cumprod(1).sum(1).minimum(batch.lookup)
    shared = torch.stack([agrees[group == g].min() for g in range(len(first))])
    # A group without a common prefix gets one token nevertheless, which is masked.
    length = max(1, int(shared.max()))
    index = torch.arange(length, device=lm.device)
    cache: Any = DynamicCache()
    prefix = PaddedTokens(ids[first, :length], (index < shared.clamp(min=1)[:, None]).long())
    nowhere = torch.zeros(0, dtype=torch.long, device=lm.device)
    with torch.no_grad():
        lm.logits(prefix, nowhere, nowhere, past_key_values=cache, use_cache=True)
    start = shared[group]
    columns, real = _tails(start, batch.read, ids.shape[1])
    return Suffix(
        layer=0,
        hidden=None,
        input_ids=ids.gather(1, columns),
        start=start,
        attention_mask=torch.cat([index < start[:, None], real], 1).long(),
        prefix=tuple((_rows(layer.keys, group), _rows(layer.values, group)) for layer in cache.layers),
    )


def _tails(start: Tensor, end: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Columns from ``start`` on, R x T, and whether they come before ``end``; all lie within ``width``."""
    columns = start[:, None] + torch.arange(int((end - start).max()), device=start.device)
    # The padding of shorter tails lies beyond the text, where any token will do.
    return columns.clamp(max=width - 1), columns < end[:, None]


def _part(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Some rows and columns of keys or values (R x H x S x width), which may be on another device than the indices."""
    part = _rows(tensor, rows)
    return part if len(columns) == part.shape[2] else part.index_select(2, columns.to(part.device))


def _rows(tensor: Tensor, rows: Tensor) -> Tensor:
    """Some rows of a tensor, which may be on another device than their indices."""
    return tensor[rows.to(tensor.device)]
