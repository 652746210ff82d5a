"""Latent optimization: which vector at a fact's lookup token makes the model give a certain answer?

The neutral targets ``z*`` and the optimized values ``V`` are the same small problem with another answer and another
place; one routine serves both, many facts at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zu_lightning.distributed import own_share, summed
from zu_lightning.errors import InputError
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import even_batches, halving
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import tokenize_fact
from zu_lightning.problem.latent_problem import LatentOptions, LatentProblem
from zu_lightning.timing import Monitor


@dataclass(frozen=True)
class TargetOptions:
    """What edits aim at, and how that is found."""

    neutral_target: str = "unknown"
    """What the model should answer instead; modules and :func:`zu_lightning.unlearn` replace ``<eos>`` by the
    tokenizer's end-of-text token."""
    optimize_values: bool = True
    """Whether V is optimized for the true answers (the paper) or observed (``V = W K``)."""
    latents: LatentOptions = field(default_factory=LatentOptions)
    """Options of the latent optimization."""

    def __post_init__(self) -> None:
        """Refuse an empty answer."""
        if not self.neutral_target.strip():
            raise InputError("neutral_target", self.neutral_target, "say what the model should answer instead.")


@dataclass(frozen=True)
class NeutralTargets:
    """The neutral targets z*, facts as columns.

    Attributes:
        contexts: Texts put before prompts when they were optimized, the first one empty.
        start: What the model computed at the lookup token, d_out x n.
        optimum: What makes it give the neutral answer, d_out x n.
        probability: Probability of the neutral answer to the bare prompt with the optimum in place, n.
        original_lost: Whether greedy decoding, with the optimum in place, no longer gives the fact's own target, n.
            The share of these facts is the ceiling of every rule.
    """

    contexts: tuple[str, ...]
    start: Tensor
    optimum: Tensor
    probability: Tensor
    original_lost: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """Everything but the contexts, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def neutral_targets(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    options: TargetOptions,
    monitor: Monitor | None = None,
) -> NeutralTargets:
    """z*: hidden states after ``layer`` at the lookup tokens that make the model give the neutral answer.

    Args:
        lm: The model.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts to put before prompts, the first one empty.
        options: The neutral answer and how to optimize.
        monitor: Shows progress.

    Returns:
        The targets, float64.
    """
    problem = LatentProblem(lm, lm.layers[layer], layer, contexts, options.latents)
    n, answers = len(facts), [options.neutral_target] * len(facts)
    start, optimum = torch.zeros(2, lm.weight(layer).shape[0], n, dtype=torch.float64, device=lm.device)
    probability, original_lost = torch.zeros(2, n, dtype=torch.float64, device=lm.device)
    for share, before, after in _optima(problem, facts, answers, "Neutral targets", monitor):
        start[:, share], optimum[:, share] = before, after
        some, delta = [facts[i] for i in share], (after - before).mT.float()
        probability[share] = problem.scores(some, [options.neutral_target] * len(some), delta).probability.double()
        own = [fact.target for fact in some]
        original_lost[share] = (~problem.scores(some, own, delta).exact).double()
    summed(start, optimum, probability, original_lost)
    return NeutralTargets(tuple(contexts), start, optimum, probability, original_lost.bool())


def original_values(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    options: LatentOptions,
    monitor: Monitor | None = None,
) -> Tensor:
    """V: outputs of the projection of ``layer`` at the lookup tokens that make the model give the true answer.

    Args:
        lm: The model.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts to put before prompts, the first one empty.
        options: How to optimize.
        monitor: Shows progress.

    Returns:
        V, d_out x n, float64.
    """
    problem = LatentProblem(lm, lm.projections[layer], layer, contexts, options)
    values = torch.zeros(lm.weight(layer).shape[0], len(facts), dtype=torch.float64, device=lm.device)
    answers = [fact.target for fact in facts]
    for share, _, after in _optima(problem, facts, answers, "Original values", monitor):
        values[:, share] = after
    return summed(values)[0]


def _optima(
    problem: LatentProblem, facts: Sequence[Fact], answers: Sequence[str], name: str, monitor: Monitor | None
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each of this process's batches of facts: their indices, start, and optimum (each d_out x facts)."""
    tokenizer = problem.lm.tokenizer
    texts = [tokenize_fact(tokenizer, fact, answer=answer) for fact, answer in zip(facts, answers, strict=True)]
    # What is computed in every step: from the lookup token up to the place before the last token.
    lengths = [len(text.ids) - 1 - text.lookup for text in texts]
    shares = list(own_share(even_batches(lengths, problem.options.facts_per_batch)))

    def solve(share: list[int]) -> tuple[Tensor, Tensor]:
        return problem.solve([facts[i] for i in share], [answers[i] for i in share])

    with (monitor or Monitor()).bar(name, sum(map(len, shares)), "facts") as bar:
        for share, (start, optimum) in halving(solve, shares, name):
            yield share, start.mT.double(), optimum.mT.double()
            bar.update(len(share))
