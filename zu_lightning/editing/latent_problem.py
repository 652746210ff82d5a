"""The optimization behind neutral targets and original values: one vector per fact, for many facts at once.

Shapes: N facts, R rows (texts of these facts), T positions of a row from the lookup token on, D width of the hidden
state, P places that the loss reads (each a row and a position).

Rows are prompts, with an answer or without, and prompts *to keep*, after which the model should go on as before.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from zu_lightning.editing.latent_rows import Kept, Rows
from zu_lightning.editing.method import EditingMethod
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.evaluation.functional import AnswerScores, answer_scores
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import Prompt, TokenBatch, collate, tokenize_all


@dataclass(frozen=True)
class LatentObjective:
    """What the model should predict for N facts: an answer, or its predictions for unknown subjects.

    Attributes:
        answers: Answer to each prompt, N; empty texts if the next token should be distributed as the references say.
        references: Log-probabilities of the next token, variants x N x vocabulary; ``None`` for words.
        truth: First token of each true answer, N; only with references.
    """

    answers: Sequence[str]
    references: Tensor | None = None
    truth: Tensor | None = None


class LatentProblem:
    """Find the vector at the output of ``site`` with which the model gives an answer, for many facts at once.

    Facts are independent of each other. Rows of a batch: every fact in every prompt variant, variants outermost, then
    the prompts to preserve of each fact.

    Args:
        lm: The model.
        site: The layer, or its projection, at whose output a vector is added.
        layer: Index of that layer.
        variants: The facts' prompt variants.
        method: Says how to optimize.
        same_subject_facts: For a fact's id, other facts about its subject whose answers should stay.
    """

    def __init__(
        self,
        lm: EditableLM,
        site: nn.Module,
        layer: int,
        variants: PromptVariants,
        method: EditingMethod,
        same_subject_facts: Mapping[str, Sequence[Fact]] | None = None,
    ) -> None:
        self.lm, self.site, self.layer, self.variants = lm, site, layer, variants
        self.options, self.release = method.latents, method.release
        self.same_subject_facts = same_subject_facts or {}
        # The residual stream adds what the projection writes, unless that is normalized first.
        self.inside_layer = site is lm.projections[layer] and lm.normalizes_mlp_output

    def solve(self, facts: Sequence[Fact], objective: LatentObjective) -> tuple[Tensor, Tensor]:
        """Start and optimum, N x D, by Adam on all facts at once; finished facts leave the batch."""
        options, n = self.options, len(facts)
        rows, start, log_probability = self._unchanged(facts, objective.answers)
        original = log_probability[len(log_probability) - int(rows.keep.sum()) :]
        size = start.square().sum(1)
        unit = ((size / start.shape[1]).sqrt() if self.release.scale_free_latents else torch.ones_like(size))[:, None]
        limit = options.clamp * size.sqrt()[:, None] / unit
        coordinates = torch.zeros_like(start, requires_grad=True)
        optimizer = torch.optim.Adam([coordinates], lr=options.learning_rate)
        losses = self._losses(rows, objective, log_probability, original, n) + self._decay(
            torch.zeros_like(start), size
        )
        _check_finite(losses, facts)
        active = losses.detach() >= options.tolerance
        if not active.any():  # most original values are optimal from the start
            return start, start
        rows = rows.select(active[rows.fact])
        for step in range(options.steps):
            delta = coordinates * unit
            minibatch = rows.minibatch(step, options.prompts_per_step)
            losses = self._decay(delta, size) + sum(
                self._losses(part, objective, self._log_probability(part, delta), original, n)
                for part in minibatch.parts
            )
            _check_finite(losses, facts)
            # One minibatch does not tell whether a fact is done in all prompt variants.
            still_active = active & (losses.detach() >= options.tolerance) if minibatch is rows else active
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
                rows = rows.select(active[rows.fact])
        return start, (start + coordinates * unit).detach()

    @torch.no_grad()
    def scores(self, facts: Sequence[Fact], answers: Sequence[str], delta: Tensor) -> AnswerScores:
        """Scores of the answers to the bare prompts with ``delta`` (N x D) added."""
        tokenizer = self.lm.tokenizer
        asked = [Prompt.about(fact, answer=answer) for fact, answer in zip(facts, answers, strict=True)]
        texts = tokenize_all(tokenizer, asked)
        batch = collate(texts, tokenizer).to(self.lm.device)
        rows, positions, tokens = batch.answer_positions()
        return answer_scores(self._shifted(batch, rows, positions, delta), tokens, rows, len(texts))

    @torch.no_grad()
    def next_token(self, facts: Sequence[Fact], delta: Tensor) -> Tensor:
        """Next-token log-probabilities after the bare prompts with ``delta`` (N x D) added, N x vocabulary."""
        texts = tokenize_all(self.lm.tokenizer, facts)
        batch = collate(texts, self.lm.tokenizer).to(self.lm.device)
        rows = torch.arange(len(facts), device=self.lm.device)
        return log_softmax(self._shifted(batch, rows, batch.lengths - 1, delta), -1)

    def _shifted(self, batch: TokenBatch, rows: Tensor, positions: Tensor, delta: Tensor) -> Tensor:
        with self.lm.shifted(self.site, lambda hidden: _added(hidden, batch.lookup, delta), len(batch.lengths)):
            return self.lm.logits(batch, rows, positions, watched=[self.site])

    @torch.no_grad()
    def _unchanged(self, facts: Sequence[Fact], answers: Sequence[str]) -> tuple[Rows, Tensor, Tensor]:
        """With nothing added: the rows, states of the site at the lookup tokens (N x D), and log-probabilities."""
        lm, n = self.lm, len(facts)
        kept = [Kept(i, j, *prompt) for i, fact in enumerate(facts) for j, prompt in enumerate(self._to_keep(fact))]
        rows = Rows.of(lm, facts, answers, self.variants, kept)
        begun, places, lookup = rows.suffix, rows.places, rows.batch.lookup
        modules = [lm.layers[self.layer], self.site]
        (at_layer, at_site), logits, cached = begun.seen(lm, modules, places.rows, places.positions)
        below = (self.layer, at_layer.input) if self.inside_layer else (self.layer + 1, at_layer.output)
        start = at_site.output[torch.arange(n, device=lm.device), (lookup - begun.start)[:n]].float()
        return replace(rows, suffix=begun.later(lookup, *below, cached)), start, log_softmax(logits, -1)

    def _to_keep(self, fact: Fact) -> Iterator[tuple[Fact, bool, float]]:
        """Prompts to preserve: prompt, whether it is read at the lookup token, and weight."""
        if fact.essence is not None and self.options.kl_weight:
            yield fact.essence, self.release.kl_position == "lookup", self.options.kl_weight
        same_subject_facts = self.same_subject_facts.get(fact.id, ()) if self.options.same_subject_weight else ()
        for same_subject_fact in same_subject_facts:
            yield same_subject_fact, False, self.options.same_subject_weight / len(same_subject_facts)

    def _log_probability(self, chosen: Rows, delta: Tensor) -> Tensor:
        """Log-probabilities at the positions that the loss reads, with ``delta`` (N x D) added: P x vocabulary."""
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
        self, chosen: Rows, objective: LatentObjective, log_probability: Tensor, original: Tensor, n: int
    ) -> Tensor:
        """N, contribution of some rows to each fact's loss."""
        fact, weight, places = chosen.fact, chosen.weight, chosen.places
        unchanged = original[chosen.kept[chosen.keep]]
        tokens, ends, kept = places.tokens, places.ends, len(log_probability) - len(unchanged)
        rows = places.rows[: len(tokens)]
        per_token = -log_probability[torch.arange(len(rows), device=tokens.device), tokens]
        losses = torch.zeros(n, device=tokens.device).index_add(0, fact[rows], per_token * weight[rows])
        if objective.references is not None and objective.truth is not None:
            references, truth = objective.references[chosen.variant[ends], fact[ends]], objective.truth[fact[ends]]
            said = log_probability[len(tokens) : kept]
            away = _from_references(said, references, truth, self.options.hinge_weight)
            losses = losses.index_add(0, fact[ends], weight[ends] * away)
        divergence = kl_div(unchanged, log_probability[kept:], log_target=True, reduction="none").sum(1)
        return losses.index_add(0, fact[chosen.keep], weight[chosen.keep] * divergence)

    def _decay(self, delta: Tensor, size: Tensor) -> Tensor:
        """N, weight decay of ``delta`` (N x D); ``size`` is ||start||^2."""
        # The norm has no gradient at zero, where every fact starts.
        return self.options.weight_decay * (delta.square().sum(1) + 1e-24).sqrt() / size


def _from_references(log_probability: Tensor, references: Tensor, truth: Tensor, hinge_weight: float) -> Tensor:
    """Distance of the model from the references, in nats.

    KL(references || model) hardly depends on unlikely tokens, such as the true answer's: a hinge on how much likelier
    the model finds it is added.

    Args:
        log_probability: Of the model, places x vocabulary.
        references: Of the references, places x vocabulary.
        truth: First token of the true answer, places.
        hinge_weight: Weight of what is added.

    Returns:
        Loss of each place.
    """
    divergence = kl_div(log_probability, references, log_target=True, reduction="none").sum(1)
    above = (log_probability - references).gather(1, truth[:, None])[:, 0]
    return divergence + hinge_weight * above.clamp(min=0)


def _check_finite(losses: Tensor, facts: Sequence[Fact]) -> None:
    if not torch.isfinite(losses).all():
        names = [fact.id for fact, loss in zip(facts, losses.tolist(), strict=True) if not math.isfinite(loss)]
        raise ValueError(f"the latent optimization of facts {names} gave NaN or infinite losses: check the model.")


def _added(hidden: Tensor, lookup: Tensor, delta: Tensor) -> Tensor:
    """``hidden`` (R x T x D) with ``delta`` (R x D) added at each row's lookup token."""
    rows = torch.arange(len(hidden), device=hidden.device)
    return hidden.index_put((rows, lookup), delta.to(hidden.dtype), accumulate=True)
