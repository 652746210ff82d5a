"""What a corrupted text's answer is worth when one state in it is put back to what it was.

Shapes: S corruptions of a fact, R rows (a fact and one of its corruptions), T positions of a row, N tokens of a
subject, D width.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from zu_lightning.evaluation.functional import answer_scores
from zu_lightning.lm import architecture
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import KeysAndValues, Suffix, after_shared_prefix
from zu_lightning.lm.tokens import TokenBatch, collate
from zu_lightning.tracing.corruption import Corruptor
from zu_lightning.tracing.roles import TracedText

Kind = Literal["hidden", "mlp", "attention"]
"""Whose state is restored: that after a layer, what its MLP adds to it, or what its attention adds to it."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Restorer:
    """Scores facts with corrupted subjects, and one state restored."""

    lm: EditableLM
    texts: Sequence[TracedText]
    corruptor: Corruptor
    samples: int
    window: int

    def scores(self, facts: Sequence[int]) -> Tensor:
        """Facts x token x 2 x (1 + kind x layer): probability and mean log-probability of the answers.

        The tokens are those with a role, the prompt's last one first; the scores those with a corrupted subject, and
        with the state of each kind and layer restored at the token.
        """
        lm, depth = self.lm, len(self.lm.layers)
        mlps = [architecture.mlp_module(lm.model, *at) for at in zip(lm.projections, lm.layers, strict=True)]
        attentions = [architecture.attention(layer, lm.model) for layer in lm.layers]
        once = collate([self.texts[fact].text for fact in facts], lm.tokenizer).to(lm.device)
        clean = [record.output for record in lm.record(once, [*lm.layers, *mlps, *attentions])]
        corrupted = Corrupted.of(lm, once, [self.texts[i] for i in facts], self._embeddings(facts))
        counts = torch.tensor([len(self.texts[fact].roles) for fact in facts], device=lm.device)
        shape = (len(facts), int(counts.max()), 2, 1 + len(KINDS) * depth)
        found = torch.zeros(shape, dtype=torch.float64, device=lm.device)
        for i in range(shape[1]):
            chosen = (counts > i).nonzero()[:, 0]
            places = (chosen, once.answer[chosen] - 1 - i)
            states = [state[places].repeat_interleave(self.samples, 0) for state in clean]
            tails = corrupted.after(chosen, places[1], self.samples)
            scores = [tails.score(depth)]
            scores += [tails.score(layer + 1, restored=states[layer]) for layer in range(depth)]
            for modules, own in ((mlps, states[depth : 2 * depth]), (attentions, states[2 * depth :])):
                for layer in range(depth):
                    near = window_at(layer, self.window, depth)
                    scores.append(tails.score(near.start, changes=[(modules[j], own[j]) for j in near]))
            found[chosen, i] = torch.stack(scores, -1).view(len(chosen), self.samples, 2, -1).mean(1)
        return found

    def _embeddings(self, facts: Sequence[int]) -> list[Tensor]:
        """What each fact's subject gets, S x N x D."""
        return [self.corruptor.embedded(fact, self.samples) for fact in facts]


@dataclass(frozen=True)
class Corrupted:
    """What the model has seen of texts with corrupted subjects.

    Attributes:
        lm: The model.
        batch: R texts; the corruptions of a fact are one after the other.
        suffix: The texts from where their subjects begin.
        hidden: Of the suffix, R x T x D: the embeddings, and the output of every layer.
        cached: Keys and values.
    """

    lm: EditableLM
    batch: TokenBatch
    suffix: Suffix
    hidden: Sequence[Tensor]
    cached: KeysAndValues

    @classmethod
    def of(
        cls, lm: EditableLM, once: TokenBatch, texts: Sequence[TracedText], embeddings: Sequence[Tensor]
    ) -> "Corrupted":
        """Corrupt each text in as many ways as there are embeddings for its subject (S x N x D each)."""
        samples, device = len(embeddings[0]), lm.device
        group = torch.arange(len(texts), device=device).repeat_interleave(samples)
        begins = torch.tensor([text.subject.start for text in texts], device=device)
        batch = once.select(group)
        suffix = after_shared_prefix(lm, replace(batch, lookup=begins[group]), group)
        sizes = torch.tensor([len(text.subject) for text in texts], device=device)[group]
        rows = torch.arange(len(group), device=device).repeat_interleave(sizes)
        positions = torch.cat([torch.arange(len(text.subject)).repeat(samples) for text in texts]).to(device)
        positions += (begins[group] - suffix.start)[rows]
        values = torch.cat([embedding.flatten(0, 1) for embedding in embeddings])
        module = lm.model.get_input_embeddings()
        nowhere = rows[:0]
        with lm.shifted(module, lambda x: x.index_put((rows, positions), values.to(x.dtype)), len(group)):
            records, _, cached = suffix.seen(lm, [module, *lm.layers], nowhere, nowhere)
        return cls(lm, batch, suffix, [record.output for record in records], cached)

    def after(self, facts: Tensor, positions: Tensor, samples: int) -> "Tails":
        """The texts of some facts from one token of each on."""
        rows = (facts[:, None] * samples + torch.arange(samples, device=facts.device)).flatten()
        suffix = self.suffix
        some = Suffix(0, None, suffix.input_ids[rows], suffix.start[rows], suffix.attention_mask[rows], ())
        cached = tuple((keys[rows.to(keys.device)], values[rows.to(values.device)]) for keys, values in self.cached)
        hidden = [state[rows] for state in self.hidden]
        return Tails(self.lm, self.batch.select(rows), some, positions.repeat_interleave(samples), hidden, cached)


@dataclass(frozen=True)
class Tails:
    """Corrupted texts, to be read from one token of each on: nothing before it changes when its state is restored.

    Attributes:
        lm: The model.
        batch: R texts.
        suffix: The texts from where their subjects begin.
        start: R, where in its text each tail begins.
        hidden: Of the suffix, R x T x D: the embeddings, and the output of every layer.
        cached: Keys and values.
    """

    lm: EditableLM
    batch: TokenBatch
    suffix: Suffix
    start: Tensor
    hidden: Sequence[Tensor]
    cached: KeysAndValues

    def score(
        self, layer: int, *, restored: Tensor | None = None, changes: Sequence[tuple[nn.Module, Tensor]] = ()
    ) -> Tensor:
        """R x 2, probability and mean log-probability of the answers.

        Args:
            layer: Where the pass begins.
            restored: R x D, input of that layer at the first token; as it was seen if not given.
            changes: Modules, and their outputs (R x D) at the first token.
        """
        lm, rows = self.lm, len(self.start)
        tails = self.suffix.later(self.start, layer, self.hidden[layer], self.cached)
        if restored is not None:
            tails = replace(tails, hidden=_put(restored, cast("Tensor", tails.hidden)))
        answer, positions, tokens = self.batch.answer_positions()
        with ExitStack() as stack:
            if layer == 0:  # embeddings are no layer's output: they are put in by a hook
                corrupted = cast("Tensor", tails.hidden)
                stack.enter_context(lm.shifted(lm.model.get_input_embeddings(), lambda _: corrupted, rows))
            for module, state in changes:
                stack.enter_context(lm.shifted(module, partial(_put, state), rows))
            logits = tails.logits(lm, answer, positions, watched=[module for module, _ in changes])
        scores = answer_scores(logits, tokens, answer, rows)
        return torch.stack([scores.probability, scores.log_probability], 1)


def _put(state: Tensor, hidden: Tensor) -> Tensor:
    """``hidden`` (R x T x D) with a state (R x D) at the first token of each row."""
    return torch.cat([state[:, None].to(hidden.dtype), hidden[:, 1:]], 1)


def window_at(layer: int, window: int, depth: int) -> range:
    """The layers that are restored together, centered at one as far as the model reaches.

    Example:
        >>> window_at(2, 3, depth=6), window_at(0, 3, depth=6)
        (range(1, 4), range(0, 2))
    """
    start = layer - (window - 1) // 2
    return range(max(0, start), min(depth, start + window))
