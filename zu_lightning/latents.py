"""Latent optimisation: which vector at a fact's lookup token makes the model emit a given answer?

The neutral targets ``z*`` and the optimised values ``V`` are the same small problem with another answer and another
place; one routine serves both, many facts at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax
from tqdm.auto import tqdm

from zu_lightning.distributed import own_share, summed
from zu_lightning.facts import Fact
from zu_lightning.lm import EditableLM
from zu_lightning.metrics.functional import answer_scores
from zu_lightning.tokens import collate, tokenize, tokenize_fact

ESSENCE_PROMPT = "{} is a"
"""Continuations of this prompt should stay as they are: what the subject is must survive."""


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
    """Facts optimised at a time, and the unit in which they are shared over processes."""

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
    return _optimise(
        lm, facts, [neutral] * len(facts), layer, contexts, options, at_projection=False, progress=progress
    )


def original_values(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    options: LatentOptions,
    *,
    progress: bool = False,
) -> Latents:
    """V: outputs of the projection of ``layer`` at the lookup tokens that make the model emit the true answers."""
    targets = [fact.target for fact in facts]
    return _optimise(lm, facts, targets, layer, contexts, options, at_projection=True, progress=progress)


def _optimise(
    lm: EditableLM,
    facts: Sequence[Fact],
    answers: Sequence[str],
    layer: int,
    contexts: Sequence[str],
    options: LatentOptions,
    *,
    at_projection: bool,
    progress: bool,
) -> Latents:
    n, d_out = len(facts), lm.weight(layer).shape[0]
    start, optimum = torch.zeros(2, d_out, n, dtype=torch.float64, device=lm.device)
    probability, original_lost = torch.zeros(2, n, dtype=torch.float64, device=lm.device)
    # Even batches, so that processes get even shares.
    edges = torch.linspace(0, n, -(-n // options.facts_per_batch) + 1).round().int().tolist()
    batches = [slice(start, end) for start, end in pairwise(edges)]
    shares = list(own_share(batches))
    name = "Original values" if at_projection else "Neutral targets"
    with tqdm(total=len(shares) * options.steps, desc=name, disable=not progress, leave=False) as bar:
        for share in shares:
            problem = _LatentProblem(lm, facts[share], answers[share], layer, contexts, options, at_projection)
            found = problem.solve(bar)
            start[:, share], optimum[:, share] = found.start, found.optimum
            probability[share], original_lost[share] = found.probability, found.original_lost.double()
    summed(start, optimum, probability, original_lost)
    return Latents(start, optimum, probability, original_lost.bool())


class _LatentProblem:
    """The joint problem of a few facts; facts do not influence each other.

    Rows of the batch: every fact behind every context, contexts outermost, then one essence prompt for each fact with
    a subject.
    """

    def __init__(
        self,
        lm: EditableLM,
        facts: Sequence[Fact],
        answers: Sequence[str],
        layer: int,
        contexts: Sequence[str],
        options: LatentOptions,
        at_projection: bool,
    ) -> None:
        self.lm, self.facts, self.layer, self.options = lm, facts, layer, options
        self.site = lm.projections[layer] if at_projection else lm.layers[layer]
        n = len(facts)
        texts = [
            tokenize_fact(lm.tokenizer, fact, context=context, answer=answer)
            for context in contexts
            for fact, answer in zip(facts, answers, strict=True)
        ]
        self.prompt_rows = len(texts)
        with_subject = [i for i, fact in enumerate(facts) if fact.subject]
        texts += [
            tokenize(lm.tokenizer, ESSENCE_PROMPT.format(facts[i].subject), lookup_end=len(facts[i].subject or ""))
            for i in with_subject
        ]
        self.batch = lm.to_device(collate(texts, lm.tokenizer))
        self.fact_of_row = torch.tensor([i % n for i in range(self.prompt_rows)] + with_subject, device=lm.device)
        at_layer, at_site = lm.record(self.batch, [lm.layers[layer], self.site])
        self.layer_input = at_layer.input
        self.start = at_site.output[range(n), self.batch.lookup[:n]].float()
        rms = self.start.square().mean(1, keepdim=True).sqrt()
        self.unit = rms if options.scale_free else torch.ones_like(rms)
        self.coordinates = torch.zeros_like(self.start, requires_grad=True)

    @property
    def delta(self) -> Tensor:
        """The vectors added at the lookup tokens, facts x d_out."""
        return self.coordinates * self.unit

    def solve(self, bar: Any) -> Latents:
        """Run Adam on all facts at once; a fact that is done is frozen."""
        optimizer = torch.optim.Adam([self.coordinates], lr=self.options.learning_rate)
        limit = self.options.clamp * self.start.norm(dim=1, keepdim=True) / self.unit
        original_essence = self._essence_distribution().detach()
        active = torch.ones(len(self.facts), dtype=torch.bool, device=self.lm.device)
        for step in range(self.options.steps):
            losses = self._losses(original_essence)
            if not torch.isfinite(losses).all():
                raise ValueError(f"the latent optimisation of {self._names(~torch.isfinite(losses))} broke down: NaN.")
            active &= losses.detach() >= self.options.tolerance
            bar.update()
            if step == self.options.steps - 1 or not active.any():
                bar.update(self.options.steps - 1 - step)
                break
            optimizer.zero_grad()
            torch.autograd.backward(losses[active].sum())
            before = self.coordinates.detach().clone()
            optimizer.step()
            with torch.no_grad():
                norm = self.coordinates.norm(dim=1, keepdim=True)
                self.coordinates.mul_((limit / norm.clamp(min=1e-12)).clamp(max=1.0))
                # Adam's momentum would move a finished fact on.
                self.coordinates[~active] = before[~active]
        with torch.no_grad():
            return Latents(
                start=self.start.mT.double(),
                optimum=(self.start + self.delta).mT.double(),
                probability=self._bare_probability(),
                original_lost=self._original_lost(),
            )

    def _names(self, chosen: Tensor) -> list[str]:
        return [fact.id for fact, is_chosen in zip(self.facts, chosen.tolist(), strict=True) if is_chosen]

    def _losses(self, original_essence: Tensor) -> Tensor:
        rows, positions, tokens = self.batch.answer_positions()
        essence_rows = torch.arange(self.prompt_rows, len(self.fact_of_row), device=self.lm.device)
        log_probability = log_softmax(
            self._logits(torch.cat([rows, essence_rows]), torch.cat([positions, self.batch.lengths[essence_rows] - 1])),
            -1,
        )
        per_token = -log_probability[range(len(rows)), tokens]
        # Mean over an answer's tokens, then over contexts.
        weight = 1.0 / (self.batch.lengths - self.batch.answer).clamp(min=1).float()
        contexts = self.prompt_rows // len(self.facts)
        losses = torch.zeros(len(self.facts), device=self.lm.device)
        losses = losses.index_add(0, self.fact_of_row[rows], per_token * weight[rows] / contexts)
        divergence = kl_div(original_essence, log_probability[len(rows) :], log_target=True, reduction="none").sum(1)
        losses = losses.index_add(0, self.fact_of_row[essence_rows], self.options.kl_weight * divergence)
        # The norm has no gradient at zero, where every fact starts.
        size = (self.delta.square().sum(1) + 1e-24).sqrt()
        return losses + self.options.weight_decay * size / self.start.square().sum(1)

    def _essence_distribution(self) -> Tensor:
        rows = torch.arange(self.prompt_rows, len(self.fact_of_row), device=self.lm.device)
        return log_softmax(self._logits(rows, self.batch.lengths[rows] - 1), -1)

    def _bare_probability(self) -> Tensor:
        rows, positions, tokens = self.batch.answer_positions()
        bare = rows < len(self.facts)
        logits = self._logits(rows[bare], positions[bare])
        return answer_scores(logits, tokens[bare], rows[bare], len(self.facts)).probability

    def _original_lost(self) -> Tensor:
        """Whether the facts' own targets are gone when the bare prompts are decoded with the optimum in place."""
        texts = [tokenize_fact(self.lm.tokenizer, fact, answer=fact.target) for fact in self.facts]
        batch = self.lm.to_device(collate(texts, self.lm.tokenizer))
        rows, positions, tokens = batch.answer_positions()
        with self.lm.shifted(self.site, lambda hidden: _added(hidden, batch.lookup, self.delta)):
            logits = self.lm.logits(batch, rows, positions)
        return ~answer_scores(logits, tokens, rows, len(texts)).exact

    def _logits(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Logits with delta in place, computed from the edited layer's cached input on: nothing below it changes."""
        delta = self.delta[self.fact_of_row]
        with (
            self.lm.resumed(self.layer, self.layer_input),
            self.lm.shifted(self.site, lambda hidden: _added(hidden, self.batch.lookup, delta)),
        ):
            return self.lm.logits(self.batch, rows, positions)


def _added(hidden: Tensor, lookup: Tensor, delta: Tensor) -> Tensor:
    """``hidden`` (rows x length x width) with ``delta`` (rows x width) added at each row's lookup token."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden.index_put((rows, lookup), delta.to(hidden.dtype), accumulate=True)
