"""Latent optimisation: which vector at a fact's lookup token makes the model emit a given answer?

The neutral targets ``z*`` and the optimised values ``V`` are the same small problem with another answer and another
place; one routine serves both, many facts at a time.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from tqdm.auto import tqdm

from zu_lightning.distributed import own_share, summed
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import Suffix, after_shared_prefix
from zu_lightning.lm.tokens import TokenBatch, collate, tokenize_fact
from zu_lightning.metrics.functional import AnswerScores, answer_scores

log = logging.getLogger(__name__)

PADDED = 1.5
"""How many times as long as the shortest the longest fact of a batch may be, from the lookup token on."""


@dataclass(frozen=True)
class LatentOptions:
    """How latent vectors are optimised. The defaults are the paper's, which are MEMIT's, ``scale_free`` excepted."""

    steps: int = 25
    """Evaluations of the loss; Adam moves between them."""
    learning_rate: float = 0.1
    """Adam's step size for an entry; with ``scale_free`` in units of the start's root mean square."""
    scale_free: bool = True
    """Whether steps are as long as the vector they move: 25 steps of 0.1 take an entry 2.5 further at most, which is
    far in a model whose hidden states have entries of 0.3 and nowhere in one where they have 5."""
    kl_weight: float = 0.0625
    """Weight of KL(new || original) of the next token after "{subject} is a", in nats."""
    weight_decay: float = 0.5
    """Weight of ||delta|| / ||start||^2."""
    clamp: float = 0.75
    """Largest ||delta|| / ||start||."""
    tolerance: float = 0.05
    """A fact whose loss is below this is done, in nats."""
    facts_per_batch: int = 16
    """Facts optimised at a time, and the unit in which they are shared over processes; halved where memory does not
    suffice."""

    def __post_init__(self) -> None:
        """Refuse numbers that no optimisation can run with."""
        for name in ("steps", "learning_rate", "clamp", "facts_per_batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"latents.{name} must be positive, but is {getattr(self, name)}.")


@dataclass(frozen=True)
class Latents:
    """Optimised vectors, facts as columns.

    Attributes:
        start: What the model computed at the place, d_out x n.
        optimum: What makes it emit the answer, d_out x n.
        probability: Probability of the answer to the bare prompt with the optimum in place, n.
        original_lost: Whether greedy decoding, with the optimum in place, no longer gives the fact's own target, n.
            For neutral targets the share of these facts is the ceiling of every rule.
    """

    start: Tensor
    optimum: Tensor
    probability: Tensor
    original_lost: Tensor


def neutral_targets(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    neutral: str,
    contexts: Sequence[str],
    options: LatentOptions,
    *,
    progress: bool = False,
) -> Latents:
    """z*: hidden states after ``layer`` at the lookup tokens that make the model emit the neutral answer."""
    problem = _LatentProblem(lm, lm.layers[layer], layer, contexts, options)
    n, answers = len(facts), [neutral] * len(facts)
    start, optimum = torch.zeros(2, lm.weight(layer).shape[0], n, dtype=torch.float64, device=lm.device)
    probability, original_lost = torch.zeros(2, n, dtype=torch.float64, device=lm.device)
    for share, before, after in _own_optima(problem, facts, answers, "Neutral targets", progress=progress):
        start[:, share], optimum[:, share] = before, after
        some, delta = [facts[i] for i in share], (after - before).mT.float()
        probability[share] = problem.scores(some, [neutral] * len(some), delta).probability.double()
        own = [fact.target for fact in some]
        original_lost[share] = (~problem.scores(some, own, delta).exact).double()
    summed(start, optimum, probability, original_lost)
    return Latents(start, optimum, probability, original_lost.bool())


def original_values(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    options: LatentOptions,
    *,
    progress: bool = False,
) -> Tensor:
    """V, d_out x n: outputs of the projection of ``layer`` at the lookup tokens that make the model emit the truth."""
    problem = _LatentProblem(lm, lm.projections[layer], layer, contexts, options)
    values = torch.zeros(lm.weight(layer).shape[0], len(facts), dtype=torch.float64, device=lm.device)
    answers = [fact.target for fact in facts]
    for share, _, after in _own_optima(problem, facts, answers, "Original values", progress=progress):
        values[:, share] = after
    return summed(values)[0]


def _own_optima(
    problem: "_LatentProblem", facts: Sequence[Fact], answers: Sequence[str], name: str, *, progress: bool
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each of this process's batches of facts: their indices, start and optimum (each d_out x facts)."""
    texts = [
        tokenize_fact(problem.lm.tokenizer, fact, answer=answer) for fact, answer in zip(facts, answers, strict=True)
    ]
    # What is computed in every step.
    lengths = [len(text.ids) - 1 - text.lookup for text in texts]
    waiting = list(own_share(_batches(lengths, problem.options.facts_per_batch)))[::-1]
    fits = len(facts)
    with tqdm(total=sum(map(len, waiting)), desc=name, unit=" facts", disable=not progress, leave=False) as bar:
        while waiting:
            share = waiting.pop()
            if len(share) > fits:
                waiting += [share[fits:], share[:fits]]
                continue
            try:
                start, optimum = problem.solve([facts[i] for i in share], [answers[i] for i in share])
            except RuntimeError as error:
                if len(share) == 1 or not should_reduce_batch_size(error):
                    raise
                fits = len(share) // 2
                waiting.append(share)
                log.warning("%s: memory does not suffice for %d facts at a time, trying %d", name, len(share), fits)
            else:
                yield share, start.mT.double(), optimum.mT.double()
                bar.update(len(share))
                continue
            clear_device_cache(garbage_collection=True)  # only now has the exception let go of its tensors


def _batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices of facts of like length, ``size`` at most; batches are even, so that processes get even shares."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    while order:
        alike = [i for i in order if lengths[i] <= PADDED * lengths[order[0]]]
        edges = torch.linspace(0, len(alike), -(-len(alike) // size) + 1).round().int().tolist()
        yield from (alike[start:end] for start, end in pairwise(edges))
        order = order[len(alike) :]


@dataclass(frozen=True)
class _Places:
    """What the loss reads: before every answer token, then at the ends of texts without an answer."""

    rows: Tensor
    positions: Tensor
    tokens: Tensor
    """Of the answers; the places after them have none."""

    @classmethod
    def of(cls, batch: TokenBatch) -> "_Places":
        rows, positions, tokens = batch.answer_positions()
        essence = batch.without_answer.nonzero().squeeze(1)
        return cls(torch.cat([rows, essence]), torch.cat([positions, batch.lengths[essence] - 1]), tokens)


@dataclass(frozen=True)
class _Rows:
    """Texts of some facts, from their lookup tokens on: prompts with answers, and essence prompts without."""

    batch: TokenBatch
    suffix: Suffix
    fact: Tensor
    """Index of each row's fact."""

    def select(self, chosen: Tensor) -> "_Rows":
        """Some rows, as a mask."""
        rows = chosen.nonzero().squeeze(1)
        return _Rows(self.batch.select(rows), self.suffix.select(rows), self.fact[rows])

    @cached_property
    def places(self) -> "_Places":
        """Where the loss looks, step after step."""
        return _Places.of(self.batch)


class _LatentProblem:
    """Which vector at the output of ``site`` makes the model give an answer? Solved for many facts at once.

    Facts do not influence each other. Rows of a batch: every fact behind every context, contexts outermost, then one
    essence prompt for each fact with a subject.
    """

    def __init__(
        self, lm: EditableLM, site: nn.Module, layer: int, contexts: Sequence[str], options: LatentOptions
    ) -> None:
        self.lm, self.site, self.layer, self.contexts, self.options = lm, site, layer, contexts, options
        # The residual stream adds up what the projection writes, unless that is normalised first.
        self.inside_layer = site is lm.projections[layer] and lm.normalises_mlp_output

    def solve(self, facts: Sequence[Fact], answers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Start and optimum, facts x d_out, by Adam on all facts at once; those that are done are left out."""
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
        if not active.any():  # most original values are optimal as they are
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
                # Adam's momentum would move a finished fact on.
                coordinates[~still_active] = before[~still_active]
            if not torch.equal(active, still_active):
                active = still_active
                essence, rows = _of_active(active, essence, rows)
        return start, (start + coordinates * unit).detach()

    @torch.no_grad()
    def scores(self, facts: Sequence[Fact], answers: Sequence[str], delta: Tensor) -> AnswerScores:
        """How the model answers the bare prompts with ``delta`` (facts x d_out) in place."""
        tokenizer = self.lm.tokenizer
        texts = [tokenize_fact(tokenizer, fact, answer=answer) for fact, answer in zip(facts, answers, strict=True)]
        batch = self.lm.to_device(collate(texts, tokenizer))
        rows, positions, tokens = batch.answer_positions()
        with self.lm.shifted(self.site, lambda hidden: _added(hidden, batch.lookup, delta)):
            logits = self.lm.logits(batch, rows, positions)
        return answer_scores(logits, tokens, rows, len(texts))

    @torch.no_grad()
    def _unchanged(self, facts: Sequence[Fact], answers: Sequence[str]) -> tuple[_Rows, Tensor, Tensor]:
        """Rows of the batch, what is at the site at the lookup tokens, and log-probabilities, with nothing added."""
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
        batch = lm.to_device(collate(texts, lm.tokenizer))
        begun = after_shared_prefix(lm, batch, torch.tensor(context_of_row, device=lm.device))
        places = _Places.of(batch)
        modules = [lm.layers[self.layer], self.site]
        (at_layer, at_site), logits, cached = begun.seen(lm, modules, places.rows, places.positions)
        below = (self.layer, at_layer.input) if self.inside_layer else (self.layer + 1, at_layer.output)
        suffix = begun.later(batch.lookup, *below, cached)
        lookup = (batch.lookup - begun.start)[:n]
        start = at_site.output[torch.arange(n, device=lm.device), lookup].float()
        return _Rows(batch, suffix, fact_of_row), start, log_softmax(logits, -1)

    def _log_probability(self, chosen: _Rows, delta: Tensor) -> Tensor:
        """At the places that the loss reads, with ``delta`` (facts x d_out) in place: places x vocabulary."""
        places, first = chosen.places, torch.zeros_like(chosen.fact)
        of_row = delta[chosen.fact]

        def moved(hidden: Tensor) -> Tensor:
            return _added(hidden, first, of_row)

        if self.inside_layer:
            with self.lm.shifted(self.site, moved):
                return log_softmax(chosen.suffix.logits(self.lm, places.rows, places.positions), -1)
        assert chosen.suffix.hidden is not None
        suffix = replace(chosen.suffix, hidden=moved(chosen.suffix.hidden))
        return log_softmax(suffix.logits(self.lm, places.rows, places.positions), -1)

    def _losses(
        self, chosen: _Rows, log_probability: Tensor, original_essence: Tensor, delta: Tensor, size: Tensor
    ) -> Tensor:
        """Loss of every fact; of facts without rows only the decay. ``size`` is ||start||^2."""
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
        raise ValueError(f"the latent optimisation of {names} broke down: NaN.")


def _of_active(active: Tensor, essence: Tensor, rows: _Rows) -> tuple[Tensor, _Rows]:
    """Original distributions and rows of the facts that are not done."""
    stays = active[rows.fact]
    return essence[stays[rows.batch.without_answer]], rows.select(stays)


def _added(hidden: Tensor, lookup: Tensor, delta: Tensor) -> Tensor:
    """``hidden`` (rows x length x width) with ``delta`` (rows x width) added at each row's lookup token."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden.index_put((rows, lookup), delta.to(hidden.dtype), accumulate=True)
