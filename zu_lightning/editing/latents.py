"""Latent optimization: which vector at a fact's lookup token makes the model give a certain answer?

The neutral targets ``z*`` and the optimized values ``V`` are the same small problem with another answer and another
place; one routine serves both, many facts at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from zu_lightning.editing.latent_problem import LatentObjective, LatentOptions, LatentProblem
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.references import References, first_tokens
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import even_batches, retry_with_smaller_batch
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import Prompt, tokenize_all
from zu_lightning.runtime.distributed import all_gather, all_to_all, gather_to_rank_zero, rank_shard, rank_slice
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor

Target = Literal["word", "reference"]
"""What a neutral target makes the model say: the neutral answer, or what it says of unknown subjects."""


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
    target: Target = "word"
    """Whether z* makes the model say the neutral answer (``word``, the paper), or what it predicts for unknown subjects
    (``reference``): then nothing of the fact is left in z*, where a word only covers it."""

    def __post_init__(self) -> None:
        """Refuse an empty answer."""
        if not self.neutral_target.strip():
            raise InputError("neutral_target", self.neutral_target, "say what the model should answer instead.")


@dataclass(frozen=True)
class NeutralTargets:
    """The neutral targets z*, facts as columns.

    Attributes:
        contexts: Texts put before prompts when they were optimized, the first one empty.
        start: What the model computed at the lookup token, d_out x n; of several processes each has the columns of its
            share of the facts.
        optimum: What makes it give the neutral answer, likewise.
        probability: Of the neutral answer to the bare prompt with the optimum in place, n; with references the share
            of their next-token distribution that the model's has in common.
        original_lost: Whether greedy decoding, with the optimum in place, no longer gives the fact's own target, n.
            The share of these facts is the ceiling of every rule.
    """

    contexts: tuple[str, ...]
    start: Tensor
    optimum: Tensor
    probability: Tensor
    original_lost: Tensor

    @classmethod
    def of(cls, contexts: tuple[str, ...], rows: Tensor) -> "NeutralTargets":
        """From a row for each fact of this process's share: start, optimum, probability, and whether it is lost.

        Args:
            contexts: See above.
            rows: share x (2 d_out + 2), float64.
        """
        width = rows.shape[1] // 2 - 1
        probability, lost = all_gather(rows[:, 2 * width :]).mT
        return cls(contexts, rows[:, :width].mT, rows[:, width : 2 * width].mT, probability, lost.bool())

    def rows(self) -> Tensor:
        """What :meth:`of` takes."""
        own = rank_slice(len(self.probability))
        scores = torch.stack([self.probability[own], self.original_lost[own].double()], 1)
        return torch.cat([self.start.mT, self.optimum.mT, scores], 1)

    def state_dict(self) -> dict[str, object]:
        """Contexts, and the rows of all facts in main memory of the first process; the others get those of their share.

        All processes have to ask for it.
        """
        own = self.rows()
        everyones = gather_to_rank_zero(own)
        return {"contexts": self.contexts, "rows": own.cpu() if everyones is None else everyones}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device) -> "NeutralTargets":
        """The targets that :meth:`state_dict` gave the first of any number of processes."""
        rows = state["rows"]
        return cls.of(state["contexts"], rows[rank_slice(len(rows))].to(device, copy=True))


@dataclass(frozen=True)
class Others:
    """Who else plays a part in neutral targets.

    Attributes:
        unknown_subjects: For each fact the subjects of whom references are made; empty if there are none.
        same_subject_facts: For a fact's id, other facts about its subject whose answers should stay.
        rephrased: For a fact's id, the fact in other words, which count like contexts.
    """

    unknown_subjects: Sequence[tuple[str, ...]] = ()
    same_subject_facts: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    rephrased: Mapping[str, Sequence[Fact]] = field(default_factory=dict)


def neutral_targets(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    options: TargetOptions,
    others: Others | None = None,
    monitor: Monitor | None = None,
) -> NeutralTargets:
    """z*: hidden states after ``layer`` at the lookup tokens that make the model say what it should.

    Args:
        lm: The model.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts to put before prompts, the first one empty.
        options: What the model should say, and how to optimize.
        others: Who else plays a part in it.
        monitor: Shows progress.

    Returns:
        The targets, float64.
    """
    others = others or Others()
    variants = PromptVariants(contexts, others.rephrased)
    problem = LatentProblem(lm, lm.layers[layer], layer, variants, options.latents, others.same_subject_facts)
    n, by_reference = len(facts), options.target == "reference"
    answers = ["" if by_reference else options.neutral_target] * n
    references = References(lm, variants)

    def goal(share: list[int]) -> LatentObjective:
        if not by_reference:
            return LatentObjective([answers[i] for i in share])
        some = [facts[i] for i in share]
        said = references.of(some, [others.unknown_subjects[i] for i in share])
        return LatentObjective([""] * len(share), said, first_tokens(lm, some))

    def found() -> Iterator[tuple[Sequence[int], Tensor]]:
        for share, before, after in _optima(problem, facts, answers, goal, "Neutral targets", monitor):
            some, delta = [facts[i] for i in share], (after - before).float()
            if by_reference:
                said = references.of(some, [others.unknown_subjects[i] for i in share])[0].exp()
                probability = problem.next_token(some, delta).exp().minimum(said).sum(1)
            else:
                words = [options.neutral_target] * len(some)
                probability = problem.scores(some, words, delta).probability
            lost = ~problem.scores(some, [fact.target for fact in some], delta).exact
            yield share, torch.cat([before, after, probability.double()[:, None], lost.double()[:, None]], 1)

    none = torch.zeros(0, 2 * lm.weight(layer).shape[0] + 2, dtype=torch.float64, device=lm.device)
    return NeutralTargets.of(tuple(contexts), all_to_all(found(), none, n))


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
        V, d_out x n, float64; of several processes each gets the columns of its share of the facts.
    """
    problem = LatentProblem(lm, lm.projections[layer], layer, PromptVariants(contexts), options)
    answers = [fact.target for fact in facts]

    def goal(share: list[int]) -> LatentObjective:
        return LatentObjective([answers[i] for i in share])

    optima = _optima(problem, facts, answers, goal, "Original values", monitor)
    none = torch.zeros(0, lm.weight(layer).shape[0], dtype=torch.float64, device=lm.device)
    return all_to_all(((share, after) for share, _, after in optima), none, len(facts)).mT


def _optima(
    problem: LatentProblem,
    facts: Sequence[Fact],
    answers: Sequence[str],
    goal: Callable[[list[int]], LatentObjective],
    name: str,
    monitor: Monitor | None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each of this process's batches of facts: their indices, start, and optimum (each facts x d_out)."""
    tokenizer = problem.lm.tokenizer

    # What is computed in every step: from the lookup token up to the place before the last token.
    lengths = [0] * len(facts)
    ways = [{put.template: put for _, put in problem.variants.of(fact)}.values() for fact in facts]
    asked = [(i, Prompt.about(put, answer=answers[i])) for i, puts in enumerate(ways) for put in puts]
    for (i, _), text in zip(asked, tokenize_all(tokenizer, [one for _, one in asked]), strict=True):
        lengths[i] = max(lengths[i], len(text.ids) - (text.answer < len(text.ids)) - text.lookup)
    shares = list(rank_shard(even_batches(lengths, problem.options.facts_per_batch)))

    def solve(share: list[int]) -> tuple[Tensor, Tensor]:
        return problem.solve([facts[i] for i in share], goal(share))

    with (monitor or Monitor()).bar(name, sum(map(len, shares)), "facts") as bar:
        for share, (start, optimum) in retry_with_smaller_batch(solve, shares, name):
            yield share, start.double(), optimum.double()
            bar.update(len(share))
