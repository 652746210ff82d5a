"""Causal tracing by layer, kind of module, and role of the token: average indirect effects (ROME, arXiv 2202.05262).

The subject is corrupted in the input, and the state of one module at one token is restored to its clean value: the rise
of the answer's probability is the indirect effect of that module at that token.

Shapes: F facts, S corruptions of a fact, R rows (a fact and one of its corruptions), T positions of a row, N tokens of
a subject, D width.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from zu_lightning.evaluation.functional import answer_scores
from zu_lightning.facts.fact import Fact
from zu_lightning.lm import architecture
from zu_lightning.lm.batching import batches, retry_with_smaller_batch
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.suffix import KeysAndValues, Suffix, after_shared_prefix
from zu_lightning.lm.tokens import TokenBatch, check_lengths, collate
from zu_lightning.lm.work import Work, measure_speed
from zu_lightning.runtime.distributed import all_reduce, process, rank_shard
from zu_lightning.runtime.errors import InputError, require_positive
from zu_lightning.runtime.timing import Monitor, in_words
from zu_lightning.tracing.traced_prompts import ROLES, Corruption, Corruptor, Role, TracedText, corruptor, traced_text

log = logging.getLogger(__name__)

Kind = Literal["hidden", "mlp", "attention"]
"""Which state is restored: the output of a layer, of its MLP, or of its attention."""

KINDS: tuple[Kind, ...] = get_args(Kind)

LAYERS_PER_WINDOW = 5
"""By default a window is this fraction of the layers: ROME's windows are 10 of GPT-2 XL's 48."""


@dataclass(frozen=True)
class TraceOptions:
    """Options of causal tracing."""

    corruption: Corruption = "noise"
    """``noise`` on the embeddings of the subject's tokens, as in ROME, or ``interchange``: those of other subjects."""
    samples: int = 10
    """Corruptions of each fact over which probabilities are averaged."""
    noise: float = 3.0
    """Standard deviation of the noise, in units of that of the embeddings of all subjects' tokens."""
    window: int | None = None
    """Number of neighboring layers whose MLPs, or attentions, are restored together, centered at a layer; by default a
    fifth of the model's layers, and at least 1. Hidden states are restored one at a time."""
    only_known: bool = True
    """Whether to leave out facts that the model does not answer greedily: they are uninformative about its layers."""
    seed: int = 0
    """Seed of the noise."""
    batch_tokens: int = 4096
    """Maximum number of tokens in a batch, padding included."""

    def __post_init__(self) -> None:
        """Refuse invalid options."""
        if self.corruption not in get_args(Corruption):
            remedy = f"choose one of {', '.join(get_args(Corruption))}."
            raise InputError("corruption", self.corruption, remedy)
        for name in ("samples", "noise", "window", "batch_tokens"):
            require_positive(name, getattr(self, name))

    def window_for(self, layers: int) -> int:
        """The window in a model with this number of layers.

        Raises:
            InputError: It is larger than the model.
        """
        if self.window is None:
            return max(1, round(layers / LAYERS_PER_WINDOW))
        if self.window > layers:
            raise InputError("window", self.window, f"the model has {layers} layers: restore at most that many.")
        return self.window


@dataclass(frozen=True)
class IndirectEffects:
    """Effect of restoring a state, fact by fact.

    Attributes:
        facts: Ids of the facts that were traced.
        skipped: Number of facts that were left out because the model does not answer them.
        options: Options of the tracing.
        window: Number of layers that were restored together, for MLPs and attentions.
        clean: F, probability of the answer without intervention, the product over its tokens.
        corrupted: F, with a corrupted subject, mean over corruptions.
        probability: F x kind x layer x role, the rise of that probability over ``corrupted`` when a state is restored;
            mean over corruptions, and over the prompt's tokens of that role. NaN if there are none.
        log_probability: F x kind x layer x role, the rise of the mean log-probability of the answer's tokens, in nats.
    """

    facts: tuple[str, ...]
    skipped: int
    options: TraceOptions
    window: int
    clean: Tensor
    corrupted: Tensor
    probability: Tensor
    log_probability: Tensor

    @property
    def layers(self) -> int:
        """Number of layers of the model."""
        return self.probability.shape[2]

    def of(self, kind: Kind, role: Role) -> Tensor:
        """F x layer, rise of the probability for one kind of module and one role; NaN if it has no token."""
        return self.probability[:, KINDS.index(kind), :, ROLES.index(role)]


def traceable(facts: Iterable[Fact]) -> list[Fact]:
    """The facts that name their subject."""
    return [fact for fact in facts if fact.subject]


@torch.no_grad()
def trace_effects(
    lm: EditableLM, facts: Sequence[Fact], options: TraceOptions | None = None, monitor: Monitor | None = None
) -> IndirectEffects:
    """Trace facts through layers, kinds of module, and tokens.

    All processes must call this; each gets the whole result, which does not depend on their number.

    Args:
        lm: The model.
        facts: Facts with a subject.
        options: Options; the defaults if not given.
        monitor: Shows progress.

    Returns:
        The effects; without facts if the model answers none of them.

    Raises:
        InputError: A fact has no subject or is too long for the model, or the window is larger than the model.
    """
    options, monitor = options or TraceOptions(), monitor or Monitor()
    window = options.window_for(len(lm.layers))
    texts = [traced_text(lm.tokenizer, fact) for fact in facts]
    check_lengths([text.text for text in texts], [f"fact {fact.id!r}" for fact in facts], lm.context_length)
    exact, clean = _clean_scores(lm, texts, options.batch_tokens)
    chosen = [i for i in range(len(facts)) if exact[i] or not options.only_known]
    if len(chosen) < len(facts):
        log.info("causal tracing skips %d of %d facts, which the model does not answer",
                 len(facts) - len(chosen), len(facts))  # fmt: skip
    facts, texts = [facts[i] for i in chosen], [texts[i] for i in chosen]
    corrupted, effects = torch.zeros(0), torch.zeros(0, 2, len(KINDS), len(lm.layers), len(ROLES)).double()
    if facts:
        work = tracing_work(len(lm.layers), texts, options)
        seconds = measure_speed(lm, collate([text.text for text in texts], lm.tokenizer)).seconds(work)
        log.info("causal tracing of %d facts will take about %s", len(facts), in_words(seconds / process()[1]))
        noise = options.noise if options.corruption == "noise" else None
        restorer = Restorer(lm, texts, corruptor(lm, facts, texts, noise, options.seed), options.samples, window)
        corrupted, effects = _effects(restorer, options.batch_tokens, monitor)
    return IndirectEffects(
        facts=tuple(fact.id for fact in facts),
        skipped=len(exact) - len(facts),
        options=options,
        window=window,
        clean=clean[chosen],
        corrupted=corrupted,
        probability=effects[:, 0],
        log_probability=effects[:, 1],
    )


def tracing_work(depth: int, texts: Sequence[TracedText], options: TraceOptions) -> Work:
    """What tracing texts through ``depth`` layers computes, in all processes together."""
    window = options.window_for(depth)
    starts = [depth, *range(1, depth + 1), *(2 * [window_at(layer, window, depth).start for layer in range(depth)])]
    share = sum(1 - start / depth for start in starts)
    work = Work()
    for text in texts:
        whole, answer = len(text.text.ids), len(text.text.ids) - text.text.answer
        # States are restored at each token of the prompt from the subject on, the last one first.
        restored = range(answer, answer + len(text.roles))
        work += options.samples * Work(share * sum(restored) + whole, len(starts) * len(restored) * answer)
    tokens = sum(len(text.text.ids) for text in texts) * options.samples
    longest = max((len(text.roles) for text in texts), default=0)
    return work + Work(passes=share * longest * -(-tokens // options.batch_tokens))


def _clean_scores(lm: EditableLM, texts: Sequence[TracedText], batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Whether greedy decoding gives each answer, and its probability."""
    scores_of = torch.zeros(2, len(texts), dtype=torch.float64, device=lm.device)
    for indices, batch in batched(lm, [text.text for text in texts], batch_tokens, sharded=True):
        answer, positions, tokens = batch.answer_positions()
        scores = answer_scores(lm.logits(batch, answer, positions), tokens, answer, len(indices))
        scores_of[:, indices] = torch.stack([scores.exact.double(), scores.probability])
    exact, probability = all_reduce(scores_of)[0].cpu()
    return exact > 0, probability


def _effects(restorer: "Restorer", batch_tokens: int, monitor: Monitor) -> tuple[Tensor, Tensor]:
    """Mean probability of every fact with a corrupted subject (F), and effects (F x measure x kind x layer x role)."""
    texts, depth = restorer.texts, len(restorer.lm.layers)
    roles = torch.full((len(texts), max(len(text.roles) for text in texts)), len(ROLES))
    for i, text in enumerate(texts):
        roles[i, : len(text.roles)] = torch.tensor([ROLES.index(text.roles[at]) for at in sorted(text.roles)[::-1]])
    # Each fact is processed once for each of its corruptions.
    mine = list(rank_shard(batches([text.text for text in texts], max(1, batch_tokens // restorer.samples))))
    # Only one process computes each entry; the others add zeros, so that the sum does not depend on their order.
    shape = (*roles.shape, 2, 1 + len(KINDS) * depth)
    scores = torch.zeros(shape, dtype=torch.float64, device=restorer.lm.device)
    own = sum(len(texts[fact].roles) for facts in mine for fact in facts)
    with monitor.bar("Causal tracing", own, "tokens") as bar:
        restore = partial(restorer.scores, done=bar.update)
        for facts, found in retry_with_smaller_batch(restore, mine, "causal tracing"):
            scores[facts, : found.shape[1]] = found
    scores = all_reduce(scores)[0].cpu()
    baseline = scores[:, 0, :, 0]
    effects = (scores[..., 1:] - baseline[:, None, :, None]).view(*roles.shape, 2, len(KINDS), depth)
    masks = [(roles == role)[:, :, None, None, None] for role in range(len(ROLES))]
    means = [(effects * mask).sum(1) / mask.sum(1) for mask in masks]  # 0 / 0 is NaN: no token of that role
    return baseline[:, 0], torch.stack(means, -1)


@dataclass(frozen=True)
class Restorer:
    """Scores answers with a corrupted subject and one restored state.

    Attributes:
        lm: The model.
        texts: Prompts to trace.
        corruptor: Corrupted embeddings of their subjects.
        samples: S, corruptions of each fact.
        window: Number of layers whose MLPs or attentions are restored together.
    """

    lm: EditableLM
    texts: Sequence[TracedText]
    corruptor: Corruptor
    samples: int
    window: int

    def scores(self, facts: Sequence[int], done: Callable[[int], object] = int) -> Tensor:
        """Facts x token x 2 x (1 + kind x layer): probability and mean log-probability of the answers.

        The tokens are those with a role, the prompt's last one first; the scores are those with a corrupted subject,
        then those with the state of each kind and layer restored at the token. ``done`` is called with the number of
        tokens at which all states were restored.
        """
        lm, depth = self.lm, len(self.lm.layers)
        mlps = [architecture.mlp_module(lm.model, *at) for at in zip(lm.projections, lm.layers, strict=True)]
        attentions = [architecture.attention(layer, lm.model) for layer in lm.layers]
        texts = [self.texts[fact] for fact in facts]
        batch = collate([text.text for text in texts], lm.tokenizer).to(lm.device)
        clean = [record.output for record in lm.record(batch, [*lm.layers, *mlps, *attentions])]
        embeddings = [self.corruptor.embeddings_of(fact, self.samples) for fact in facts]
        corrupted = CorruptedTexts.of(lm, batch, texts, embeddings)
        counts = torch.tensor([len(text.roles) for text in texts], device=lm.device)
        shape = (len(facts), int(counts.max()), 2, 1 + len(KINDS) * depth)
        scores = torch.zeros(shape, dtype=torch.float64, device=lm.device)
        for i in range(shape[1]):
            chosen = (counts > i).nonzero()[:, 0]
            positions = batch.answer[chosen] - 1 - i
            states = [state[chosen, positions].repeat_interleave(self.samples, 0) for state in clean]
            rows = (chosen[:, None] * self.samples + torch.arange(self.samples, device=lm.device)).flatten()
            score = partial(corrupted.select(rows).score, positions.repeat_interleave(self.samples))
            by_state = [score(depth)]
            by_state += [score(layer + 1, restored=states[layer]) for layer in range(depth)]
            for modules, own in ((mlps, states[depth : 2 * depth]), (attentions, states[2 * depth :])):
                for layer in range(depth):
                    window = window_at(layer, self.window, depth)
                    by_state.append(score(window.start, changes=[(modules[j], own[j]) for j in window]))
            scores[chosen, i] = torch.stack(by_state, -1).view(len(chosen), self.samples, 2, -1).mean(1)
            done(len(chosen))
        return scores


@dataclass(frozen=True)
class CorruptedTexts:
    """Texts with corrupted subjects, and the states that the model computed for them.

    Attributes:
        lm: The model.
        batch: R texts; the corruptions of a fact are adjacent.
        suffix: The texts from their subjects on.
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
        cls, lm: EditableLM, clean: TokenBatch, texts: Sequence[TracedText], embeddings: Sequence[Tensor]
    ) -> "CorruptedTexts":
        """Corrupt each text with each of the embeddings for its subject (S x N x D)."""
        samples, device = len(embeddings[0]), lm.device
        group = torch.arange(len(texts), device=device).repeat_interleave(samples)
        begins = torch.tensor([text.subject.start for text in texts], device=device)
        batch = clean.select(group)
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

    def select(self, rows: Tensor) -> "CorruptedTexts":
        """Some rows, by their indices."""
        suffix = self.suffix
        selected = Suffix(0, None, suffix.input_ids[rows], suffix.start[rows], suffix.attention_mask[rows], ())
        cached = tuple((keys[rows.to(keys.device)], values[rows.to(values.device)]) for keys, values in self.cached)
        hidden = [state[rows] for state in self.hidden]
        return CorruptedTexts(self.lm, self.batch.select(rows), selected, hidden, cached)

    def score(
        self,
        start: Tensor,
        layer: int,
        *,
        restored: Tensor | None = None,
        changes: Sequence[tuple[nn.Module, Tensor]] = (),
    ) -> Tensor:
        """R x 2, probability and mean log-probability of the answers.

        Args:
            start: R, the token of each text whose states are changed; no state before it depends on them.
            layer: Where the pass begins.
            restored: R x D, input of that layer at the token; the corrupted one if not given.
            changes: Modules, and their outputs (R x D) at the token.
        """
        lm, rows = self.lm, len(start)
        suffix = self.suffix.later(start, layer, self.hidden[layer], self.cached)
        if restored is not None:
            suffix = replace(suffix, hidden=_put(restored, cast("Tensor", suffix.hidden)))
        answer, positions, tokens = self.batch.answer_positions()
        with ExitStack() as stack:
            if layer == 0:  # embeddings are no layer's output: a hook replaces them
                corrupted = cast("Tensor", suffix.hidden)
                stack.enter_context(lm.shifted(lm.model.get_input_embeddings(), lambda _: corrupted, rows))
            for module, state in changes:
                stack.enter_context(lm.shifted(module, partial(_put, state), rows))
            logits = suffix.logits(lm, answer, positions, watched=[module for module, _ in changes])
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
