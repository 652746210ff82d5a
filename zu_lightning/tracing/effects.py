"""Causal tracing by layer, kind of module, and role of the token: average indirect effects (ROME, arXiv 2202.05262).

A subject is corrupted in the input; the state of one module at one token is put back to what it was; how much of the
answer comes back is the indirect effect of that module at that token.

F is the number of facts in shapes.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from zu_lightning.evaluation.functional import answer_scores
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import batches, retry_with_smaller_batch
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import check_lengths, collate
from zu_lightning.runtime.distributed import all_reduce, rank_shard
from zu_lightning.runtime.errors import InputError, require_positive
from zu_lightning.runtime.timing import Monitor
from zu_lightning.tracing.corruption import Corruption, corruptor
from zu_lightning.tracing.restoring import KINDS, Kind, Restorer
from zu_lightning.tracing.roles import ROLES, Role, TracedText, traced_text

log = logging.getLogger(__name__)

LAYERS_PER_WINDOW = 5
"""By default a window is this part of the layers: ROME's windows hold 10 of GPT-2 XL's 48."""


@dataclass(frozen=True)
class TraceOptions:
    """How facts are traced."""

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
    """Whether facts that the model does not answer greedily are left out: they say nothing about its layers."""
    seed: int = 0
    """Seed of the noise."""
    batch_tokens: int = 4096
    """Maximum number of tokens in a batch, padding included."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done."""
        if self.corruption not in get_args(Corruption):
            remedy = f"choose one of {', '.join(get_args(Corruption))}."
            raise InputError("corruption", self.corruption, remedy)
        for name in ("samples", "noise", "window", "batch_tokens"):
            require_positive(name, getattr(self, name))

    def window_for(self, layers: int) -> int:
        """The window in a model of so many layers.

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
    """What restoring one state brings back, fact by fact.

    Attributes:
        facts: Ids of the facts that were traced.
        skipped: Number of facts that were left out since the model does not answer them.
        options: How they were traced.
        window: Number of layers that were restored together, for MLPs and attentions.
        clean: F, probability of the answer without intervention, the product over its tokens.
        corrupted: F, with a corrupted subject, mean over corruptions.
        probability: F x kind x layer x role, the rise of that probability over ``corrupted`` when a state is restored;
            mean over corruptions, and over the prompt's tokens of that role. NaN where it has none.
        log_probability: F x kind x layer x role, the same of the mean log-probability of the answer's tokens, in nats.
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
        """F x layer, rise of the probability for one kind of module and one role; NaN where it has no token."""
        return self.probability[:, KINDS.index(kind), :, ROLES.index(role)]


def traceable(facts: Iterable[Fact]) -> list[Fact]:
    """Those facts that name their subject."""
    return [fact for fact in facts if fact.subject]


@torch.no_grad()
def trace_effects(
    lm: EditableLM, facts: Sequence[Fact], options: TraceOptions | None = None, monitor: Monitor | None = None
) -> IndirectEffects:
    """Trace facts through layers, kinds of module, and tokens.

    All processes have to take part; each gets the whole result, which does not depend on their number.

    Args:
        lm: The model.
        facts: Facts with a subject.
        options: How to trace.
        monitor: Shows progress.

    Returns:
        The effects; without facts if the model answers none.

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
        log.info("causal tracing leaves out %d of %d facts, which the model does not answer",
                 len(facts) - len(chosen), len(facts))  # fmt: skip
    facts, texts = [facts[i] for i in chosen], [texts[i] for i in chosen]
    corrupted, effects = torch.zeros(0), torch.zeros(0, 2, len(KINDS), len(lm.layers), len(ROLES)).double()
    if facts:
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


def _clean_scores(lm: EditableLM, texts: Sequence[TracedText], batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Whether the model gives each answer greedily, and its probability."""
    found = torch.zeros(2, len(texts), dtype=torch.float64, device=lm.device)
    for indices in rank_shard(batches([text.text for text in texts], batch_tokens)):
        batch = collate([texts[i].text for i in indices], lm.tokenizer).to(lm.device)
        answer, positions, tokens = batch.answer_positions()
        scores = answer_scores(lm.logits(batch, answer, positions), tokens, answer, len(indices))
        found[:, indices] = torch.stack([scores.exact.double(), scores.probability])
    exact, probability = all_reduce(found)[0].cpu()
    return exact > 0, probability


def _effects(restorer: Restorer, batch_tokens: int, monitor: Monitor) -> tuple[Tensor, Tensor]:
    """Mean probability of every fact with a corrupted subject (F), and effects (F x measure x kind x layer x role)."""
    texts, depth = restorer.texts, len(restorer.lm.layers)
    roles = torch.full((len(texts), max(len(text.roles) for text in texts)), len(ROLES))
    for i, text in enumerate(texts):
        roles[i, : len(text.roles)] = torch.tensor([ROLES.index(text.roles[at]) for at in sorted(text.roles)[::-1]])
    # Each fact is read once for each of its corruptions.
    shares = list(batches([text.text for text in texts], max(1, batch_tokens // restorer.samples)))
    mine = list(rank_shard(shares))
    # Every entry is found by one process only: sums over processes add zeros, and no order can change them.
    shape = (*roles.shape, 2, 1 + len(KINDS) * depth)
    found = torch.zeros(shape, dtype=torch.float64, device=restorer.lm.device)
    with monitor.bar("Causal tracing", sum(map(len, mine)), "facts") as bar:
        for facts, scores in retry_with_smaller_batch(restorer.scores, mine, "causal tracing"):
            found[facts, : scores.shape[1]] = scores
            bar.update(len(facts))
    scores = all_reduce(found)[0].cpu()
    baseline = scores[:, 0, :, 0]
    effects = (scores[..., 1:] - baseline[:, None, :, None]).view(*roles.shape, 2, len(KINDS), depth)
    of_role = [(roles == role)[:, :, None, None, None] for role in range(len(ROLES))]
    means = [(effects * chosen).sum(1) / chosen.sum(1) for chosen in of_role]  # 0 / 0 is NaN: no token of that role
    return baseline[:, 0], torch.stack(means, -1)
