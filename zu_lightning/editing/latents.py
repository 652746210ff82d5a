"""Latent optimization: the vector at a fact's lookup token with which the model gives a certain answer.

Neutral targets ``z*`` and optimized values ``V`` are the same small problem with different answers and sites; one
routine solves both, many facts at a time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zu_lightning.editing.latent_problem import LatentObjective, LatentProblem
from zu_lightning.editing.method import EditingMethod
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.references import References, first_tokens
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.lm.batching import even_batches, retry_with_smaller_batch
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import Prompt, tokenize_all
from zu_lightning.runtime.distributed import all_gather, all_to_all, gather_to_rank_zero, rank_shard, rank_slice
from zu_lightning.runtime.timing import Monitor


@dataclass(frozen=True)
class NeutralTargets:
    """The neutral targets z*, facts as columns.

    Attributes:
        contexts: Texts put before prompts when they were optimized, the first one empty.
        start: What the model computed at the lookup token, d_out x n; of several processes each has the columns of its
            share of the facts.
        optimum: The target state, likewise.
        probability: With the optimum patched in, the probability of the neutral answer to the bare prompt, n; with
            references, the overlap of the next-token distribution with theirs.
        original_lost: Whether greedy decoding, with the optimum patched in, no longer gives the fact's answer, n. The
            share of these facts is the upper bound for any edit.
    """

    contexts: tuple[str, ...]
    start: Tensor
    optimum: Tensor
    probability: Tensor
    original_lost: Tensor

    @classmethod
    def of(cls, contexts: tuple[str, ...], rows: Tensor) -> "NeutralTargets":
        """From a row for each fact of this process's shard: start, optimum, probability, and whether it is lost.

        Args:
            contexts: Context templates.
            rows: shard x (2 d_out + 2), float64.
        """
        width = rows.shape[1] // 2 - 1
        probability, lost = all_gather(rows[:, 2 * width :]).mT
        return cls(contexts, rows[:, :width].mT, rows[:, width : 2 * width].mT, probability, lost.bool())

    def rows(self) -> Tensor:
        """The inverse of :meth:`of`."""
        own = rank_slice(len(self.probability))
        scores = torch.stack([self.probability[own], self.original_lost[own].double()], 1)
        return torch.cat([self.start.mT, self.optimum.mT, scores], 1)

    def state_dict(self) -> dict[str, object]:
        """Contexts, and the rows of all facts on rank zero, in main memory; other processes get their shard's.

        A collective call.
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
class Aim:
    """What neutral targets make the model predict for n facts.

    Attributes:
        answer: The neutral answer; empty with unknown subjects.
        unknown_subjects: For each fact, the names whose next-token distributions are averaged; empty to aim at the
            answer.
        same_subject_facts: For a fact's id, other facts about its subject whose answers should stay.
    """

    answer: str = ""
    unknown_subjects: Sequence[tuple[str, ...]] = ()
    same_subject_facts: Mapping[str, Sequence[Fact]] = field(default_factory=dict)


def neutral_targets(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    variants: PromptVariants,
    aim: Aim,
    method: EditingMethod,
    monitor: Monitor | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> NeutralTargets:
    """z*: hidden states after ``layer`` at the lookup tokens with which the model predicts what it should.

    Args:
        lm: The model.
        facts: n facts.
        layer: Index of the layer.
        variants: Their prompt variants.
        aim: What the model should predict.
        method: Says how to optimize.
        monitor: Shows progress.
        batch_tokens: Maximum number of tokens per batch of references.

    Returns:
        The targets, float64.
    """
    problem = LatentProblem(lm, lm.layers[layer], layer, variants, method, aim.same_subject_facts)
    n, by_reference = len(facts), bool(aim.unknown_subjects)
    references = References(lm, variants, batch_tokens)

    def predictions(batch: list[int]) -> Tensor:
        return references.of([facts[i] for i in batch], [aim.unknown_subjects[i] for i in batch])

    def objective(batch: list[int]) -> LatentObjective:
        if not by_reference:
            return LatentObjective([aim.answer] * len(batch))
        truth = first_tokens(lm, [facts[i] for i in batch])
        return LatentObjective([""] * len(batch), predictions(batch), truth)

    def found() -> Iterator[tuple[Sequence[int], Tensor]]:
        for batch, before, after in _optima(problem, facts, [aim.answer] * n, objective, "Neutral targets", monitor):
            chosen, delta = [facts[i] for i in batch], (after - before).float()
            if by_reference:
                probability = problem.next_token(chosen, delta).exp().minimum(predictions(batch)[0].exp()).sum(1)
            else:
                probability = problem.scores(chosen, [aim.answer] * len(chosen), delta).probability
            lost = ~problem.scores(chosen, [fact.target for fact in chosen], delta).exact
            yield batch, torch.cat([before, after, probability.double()[:, None], lost.double()[:, None]], 1)

    none = torch.zeros(0, 2 * lm.weight(layer).shape[0] + 2, dtype=torch.float64, device=lm.device)
    return NeutralTargets.of(tuple(variants.contexts), all_to_all(found(), none, n))


def original_values(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    method: EditingMethod,
    monitor: Monitor | None = None,
) -> Tensor:
    """V: outputs of the projection of ``layer`` at the lookup tokens with which the model gives the true answer.

    Args:
        lm: The model.
        facts: n facts.
        layer: Index of the layer.
        contexts: Context templates, the first one empty.
        method: Says how to optimize.
        monitor: Shows progress.

    Returns:
        V, d_out x n, float64; of several processes each gets the columns of its shard of the facts.
    """
    problem = LatentProblem(lm, lm.projections[layer], layer, PromptVariants(contexts), method)
    answers = [fact.target for fact in facts]

    def objective(batch: list[int]) -> LatentObjective:
        return LatentObjective([answers[i] for i in batch])

    optima = _optima(problem, facts, answers, objective, "Original values", monitor)
    none = torch.zeros(0, lm.weight(layer).shape[0], dtype=torch.float64, device=lm.device)
    return all_to_all(((batch, after) for batch, _, after in optima), none, len(facts)).mT


def _optima(
    problem: LatentProblem,
    facts: Sequence[Fact],
    answers: Sequence[str],
    objective: Callable[[list[int]], LatentObjective],
    name: str,
    monitor: Monitor | None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """For each of this rank's batches of facts: indices, start, and optimum (each facts x d_out)."""
    tokenizer = problem.lm.tokenizer

    # Tokens computed in every step: from the lookup token up to the position before the last token.
    lengths = [0] * len(facts)
    ways = [{put.template: put for _, put in problem.variants.of(fact)}.values() for fact in facts]
    asked = [(i, Prompt.about(put, answer=answers[i])) for i, puts in enumerate(ways) for put in puts]
    for (i, _), text in zip(asked, tokenize_all(tokenizer, [one for _, one in asked]), strict=True):
        lengths[i] = max(lengths[i], len(text.ids) - (text.answer < len(text.ids)) - text.lookup)
    shares = list(rank_shard(even_batches(lengths, problem.options.facts_per_batch)))

    def solve(share: list[int]) -> tuple[Tensor, Tensor]:
        return problem.solve([facts[i] for i in share], objective(share))

    with (monitor or Monitor()).bar(name, sum(map(len, shares)), "facts") as bar:
        for share, (start, optimum) in retry_with_smaller_batch(solve, shares, name):
            yield share, start.double(), optimum.double()
            bar.update(len(share))
