"""The optimization behind neutral targets and original values: one vector per fact, for many facts at once.

Shapes: N facts, R rows (texts of these facts), T positions of a row from the lookup token on, D width of the hidden
state, P places that the loss reads (each a row and a position).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from zu_lightning.errors import InputError, require_positive
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.contexts import CONTEXT_STARTS
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import Suffix, after_shared_prefix
from zu_lightning.lm.tokens import TokenBatch, collate, tokenize_fact
from zu_lightning.metrics.functional import AnswerScores, answer_scores

KLPosition = Literal["last", "lookup"]
"""Which token of "{subject} is a" the KL term reads: its last one, or its lookup token."""


@dataclass(frozen=True)
class LatentOptions:
    """How latent vectors are optimized.

    The paper prints no numbers; the defaults are those of the authors' release, which are MEMIT's, except
    ``scale_free`` and ``kl_position``.
    """

    contexts: int = 6
    """Number of texts before a prompt over which vectors and keys are averaged, the empty one included; 6 at most."""
    steps: int = 25
    """Number of evaluations of the loss; Adam moves between them."""
    learning_rate: float = 0.1
    """Adam's step size for an entry; with ``scale_free`` in units of the start's root mean square."""
    scale_free: bool = True
    """Whether steps are measured in the size of the vector that they move: 25 steps of 0.1 move an entry by 2.5 at
    most, which is far in a model whose hidden states have entries of 0.3 and near in one whose entries are 5."""
    kl_weight: float = 0.0625
    """Weight of KL(new || original) of the next token in "{subject} is a", in nats."""
    kl_position: KLPosition = "last"
    """After which token of "{subject} is a" the KL term is read: its ``last`` one, or its ``lookup`` token, where the
    vector is added, as in MEMIT and the authors' release."""
    weight_decay: float = 0.5
    """Weight of ||delta|| / ||start||^2."""
    clamp: float = 0.75
    """Largest ||delta|| / ||start||."""
    tolerance: float = 0.05
    """A fact whose loss is below this is done, in nats."""
    facts_per_batch: int = 16
    """Number of facts that are optimized at a time, and the unit in which processes share them; halved when there
    is not enough memory."""

    def __post_init__(self) -> None:
        """Refuse numbers that no optimization can run with."""
        if not 1 <= self.contexts <= 1 + len(CONTEXT_STARTS):
            remedy = f"give a number from 1 to {1 + len(CONTEXT_STARTS)}."
            raise InputError("latents.contexts", self.contexts, remedy)
        positive = ("steps", "learning_rate", "clamp", "facts_per_batch")
        for name, value in vars(self).items():
            if not isinstance(value, str):
                require_positive(f"latents.{name}", value, or_zero=name not in positive)


@dataclass(frozen=True)
class _Places:
    """What the loss reads: before every answer token, then in each text without an answer, at one place."""

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    """Ids of the answer tokens; the places after them have none."""

    @classmethod
    def of(cls, batch: TokenBatch, kl_position: KLPosition) -> "_Places":
        rows, positions, tokens = batch.answer_positions()
        essence = batch.without_answer.nonzero().squeeze(1)
        read = batch.lookup if kl_position == "lookup" else batch.lengths - 1
        return cls(torch.cat([rows, essence]), torch.cat([positions, read[essence]]), tokens)


@dataclass(frozen=True)
class _Rows:
    """Texts of some facts, from their lookup tokens on: prompts with answers, and essence prompts without."""

    batch: TokenBatch
    suffix: Suffix
    fact: Tensor
    """R, index of each row's fact."""
    kl_position: KLPosition
    """Where essence prompts are read."""

    def select(self, chosen: Tensor) -> "_Rows":
        """Some rows, by a mask."""
        rows = chosen.nonzero().squeeze(1)
        return replace(self, batch=self.batch.select(rows), suffix=self.suffix.select(rows), fact=self.fact[rows])

    @cached_property
    def places(self) -> "_Places":
        """Where the loss looks, step after step."""
        return _Places.of(self.batch, self.kl_position)


class LatentProblem:
    """Which vector at the output of ``site`` makes the model give an answer? Solved for many facts at once.

    Facts do not influence each other. Rows of a batch: every fact after every context, contexts outermost, then one
    essence prompt for each fact with a subject.

    Args:
        lm: The model.
        site: The layer, or its projection, at whose output a vector is added.
        layer: Index of that layer.
        contexts: Texts to put before prompts, the first one empty.
        options: How to optimize.
    """

    def __init__(
        self, lm: EditableLM, site: nn.Module, layer: int, contexts: Sequence[str], options: LatentOptions
    ) -> None:
        self.lm, self.site, self.layer, self.contexts, self.options = lm, site, layer, contexts, options
        # The residual stream adds what the projection writes, unless that is normalized first.
        self.inside_layer = site is lm.projections[layer] and lm.normalizes_mlp_output

    def solve(self, facts: Sequence[Fact], answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Start and optimum, N x D, by Adam on all facts at once; facts that are done leave the batch."""
        options = self.options
        rows, start, log_probability = self._unchanged(facts, answers)
        essence = log_probability[len(rows.places.tokens) :]
        size = start.square().sum(1)
        unit = ((size / start.shape[1]).sqrt() if options.scale_free else torch.ones_like(size))[:, None]
        limit = options.clamp * size.sqrt()[:, None] / unit
        coordinates = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([coordinates], lr=options.learning_rate)
        losses = self._losses(rows, log_probability, essence, coordinates * unit, size)
        _check_finite(losses, facts)
        active = losses.detach() >= options.tolerance
        if not active.any():  # most original values are optimal from the start
            return start, start
        essence, rows = _of_active(active, essence, rows)
        for step in range(options.steps):
            delta = coordinates * unit
            losses = self._losses(rows, self._log_probability(rows, delta), essence, delta, size)
            _check_finite(losses, facts)
            still_active = active & (losses.detach() >= options.tolerance)
            if step == options.steps - 1 or not still_active.any():
                break
            optimizer.zero_grad()
            torch.autograd.backward(losses[still_active].sum())
            before = coordinates.detach().clone()
            optimizer.step()
            with torch.no_grad():
                norm = coordinates.norm(dim=1, keepdim=True)
                coordinates.mul_((limit / norm.clamp(min=1e-12)).clamp(max=1.0))
                # Adam's momentum would move a finished fact further.
                coordinates[~still_active] = before[~still_active]
            if not torch.equal(active, still_active):
                active = still_active
                essence, rows = _of_active(active, essence, rows)
        return start, (start + coordinates * unit).detach()

    @torch.no_grad()
    def scores(self, facts: Sequence[Fact], answers: Sequence[str], delta: Tensor) -> AnswerScores:
        """How the model answers the bare prompts with ``delta`` (N x D) in place."""
        tokenizer = self.lm.tokenizer
        texts = [tokenize_fact(tokenizer, fact, answer=answer) for fact, answer in zip(facts, answers, strict=True)]
        batch = collate(texts, tokenizer).to(self.lm.device)
        rows, positions, tokens = batch.answer_positions()
        with self.lm.shifted(self.site, lambda hidden: _added(hidden, batch.lookup, delta), len(texts)):
            logits = self.lm.logits(batch, rows, positions, watched=[self.site])
        return answer_scores(logits, tokens, rows, len(texts))

    @torch.no_grad()
    def _unchanged(self, facts: Sequence[Fact], answers: Sequence[str]) -> tuple[_Rows, Tensor, Tensor]:
        """With nothing added: the rows, what is at the site at the lookup tokens (N x D), and log-probabilities."""
        lm, n = self.lm, len(facts)
        texts = [
            tokenize_fact(lm.tokenizer, fact, context=context, answer=answer)
            for context in self.contexts
            for fact, answer in zip(facts, answers, strict=True)
        ]
        essences = {i: fact.essence for i, fact in enumerate(facts) if fact.essence}
        fact_of_row = torch.tensor([i % n for i in range(len(texts))] + [*essences], device=lm.device)
        context_of_row = [i // n for i in range(len(texts))] + [len(self.contexts)] * len(essences)
        texts += [tokenize_fact(lm.tokenizer, essence) for essence in essences.values()]
        batch = collate(texts, lm.tokenizer).to(lm.device)
        begun = after_shared_prefix(lm, batch, torch.tensor(context_of_row, device=lm.device))
        places = _Places.of(batch, self.options.kl_position)
        modules = [lm.layers[self.layer], self.site]
        (at_layer, at_site), logits, cached = begun.seen(lm, modules, places.rows, places.positions)
        below = (self.layer, at_layer.input) if self.inside_layer else (self.layer + 1, at_layer.output)
        suffix = begun.later(batch.lookup, *below, cached)
        lookup = (batch.lookup - begun.start)[:n]
        start = at_site.output[torch.arange(n, device=lm.device), lookup].float()
        return _Rows(batch, suffix, fact_of_row, self.options.kl_position), start, log_softmax(logits, -1)

    def _log_probability(self, chosen: _Rows, delta: Tensor) -> Tensor:
        """At the places that the loss reads, with ``delta`` (N x D) in place: P x vocabulary."""
        places, first = chosen.places, torch.zeros_like(chosen.fact)
        of_row = delta[chosen.fact]

        def moved(hidden: Tensor) -> Tensor:
            return _added(hidden, first, of_row)

        if self.inside_layer:
            with self.lm.shifted(self.site, moved, len(chosen.fact)):
                logits = chosen.suffix.logits(self.lm, places.rows, places.positions, watched=[self.site])
            return log_softmax(logits, -1)
        assert chosen.suffix.hidden is not None
        suffix = replace(chosen.suffix, hidden=moved(chosen.suffix.hidden))
        return log_softmax(suffix.logits(self.lm, places.rows, places.positions), -1)

    def _losses(
        self, chosen: _Rows, log_probability: Tensor, original_essence: Tensor, delta: Tensor, size: Tensor
    ) -> Tensor:
        """N, loss of every fact; for facts without rows only the decay. ``size`` is ||start||^2."""
        batch, fact = chosen.batch, chosen.fact
        tokens = chosen.places.tokens
        rows = chosen.places.rows[: len(tokens)]
        per_token = -log_probability[torch.arange(len(rows), device=tokens.device), tokens]
        # Mean over an answer's tokens, then over contexts.
        weight = 1.0 / (batch.lengths - batch.answer).clamp(min=1).float() / len(self.contexts)
        losses = torch.zeros(len(delta), device=delta.device).index_add(0, fact[rows], per_token * weight[rows])
        divergence = kl_div(original_essence, log_probability[len(rows) :], log_target=True, reduction="none").sum(1)
        losses = losses.index_add(0, fact[chosen.batch.without_answer], self.options.kl_weight * divergence)
        # The norm has no gradient at zero, where every fact starts.
        return losses + self.options.weight_decay * (delta.square().sum(1) + 1e-24).sqrt() / size


def _check_finite(losses: Tensor, facts: Sequence[Fact]) -> None:
    if not torch.isfinite(losses).all():
        names = [fact.id for fact, loss in zip(facts, losses.tolist(), strict=True) if not math.isfinite(loss)]
        raise ValueError(f"the latent optimization of facts {names} gave NaN or infinite losses: check the model.")


def _of_active(active: Tensor, essence: Tensor, rows: _Rows) -> tuple[Tensor, _Rows]:
    """Original distributions and rows of the facts that are not done."""
    stays = active[rows.fact]
    return essence[stays[rows.batch.without_answer]], rows.select(stays)


def _added(hidden: Tensor, lookup: Tensor, delta: Tensor) -> Tensor:
    """``hidden`` (R x T x D) with ``delta`` (R x D) added at each row's lookup token."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden.index_put((rows, lookup), delta.to(hidden.dtype), accumulate=True)
