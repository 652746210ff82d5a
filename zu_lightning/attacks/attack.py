"""What attacks share: scores of single facts, so that models are compared fact by fact."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from zu_lightning.attacks.answers import AnswerLogprobs, approximate_tokens, score_answers
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.lm.architecture import check_layers
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.distributed import all_reduce, rank_shard
from zu_lightning.runtime.errors import require_positive

UNDEFINED = float("nan")
"""Score of a fact to which an attack does not apply, such as a rank without other answers."""


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A test of how much of the forgotten facts can be recovered from a model.

    Scores lie between 0 and 1, and are higher for a model that knows more: for each fact, the share of an attacker's
    attempts that succeed, or the share of the answer that is recovered. Options that are numbers must be positive.
    """

    name: ClassVar[str]
    """Prefix of the names of its scores."""

    def __post_init__(self) -> None:
        """Refuse numbers that are not positive."""
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, (int, float)):
                require_positive(f"{self.name}.{option.name}", value)

    @abstractmethod
    def cost(self, context: AttackContext) -> int:
        """Approximate number of tokens to process; a token that is trained on counts three times."""

    @abstractmethod
    def scores(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """By name, the scores of some facts of the context, given by their indices (at least one).

        The model is left unchanged. The names do not depend on the facts.
        """

    def chance(self, context: AttackContext) -> Mapping[str, Sequence[float]]:
        """By name, the score that a model that knows nothing has by chance, of each fact; only of scores that have one.

        ``UNDEFINED`` for facts to which the attack does not apply.
        """
        return {}

    def groups(self, context: AttackContext) -> list[list[int]]:
        """Indices of facts that one process must attack together; by default each fact is on its own."""
        return [[i] for i in range(len(context.facts))]

    def __call__(self, lm: EditableLM, context: AttackContext) -> dict[str, Tensor]:
        """By name, the scores of all n facts, float64; processes share the facts."""
        mine = [i for group in rank_shard(self.groups(context)) for i in group]
        # A process without facts of its own attacks the first one, only to know the names of the scores.
        return _of_all_facts(self.scores(lm, context, mine or [0]), mine, len(context.facts), lm.device)


@dataclass(frozen=True, kw_only=True)
class QueryAttack(Attack):
    """An attack that needs only the probabilities of answers to queries."""

    @abstractmethod
    def queries(self, context: AttackContext, i: int) -> Sequence[Query]:
        """Prompts for fact ``i``, each with the answer to score."""

    @abstractmethod
    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Scores of fact ``i``, by name, from those of its queries' answers."""

    def cost(self, context: AttackContext) -> int:
        """All prompts, and all answers."""
        return cost_together([self], context)

    def scores(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """Score the answers to all queries."""
        return scores_together([self], lm, context, facts)[0]


def cost_together(attacks: Sequence[QueryAttack], context: AttackContext) -> int:
    """Approximate number of tokens to process; what attacks have in common counts once."""
    queries = {query for attack in attacks for i in range(len(context.facts)) for query in attack.queries(context, i)}
    prompts = {query.prompt for query in queries}
    return sum(map(approximate_tokens, prompts)) + sum(approximate_tokens(query.target) for query in queries)


def scores_together(
    attacks: Sequence[QueryAttack],
    lm: EditableLM,
    context: AttackContext,
    facts: Sequence[int],
    done: Callable[[int], object] = int,
) -> list[dict[str, list[float]]]:
    """Scores of several attacks on some facts; a query that they have in common is answered once.

    Args:
        attacks: The attacks.
        lm: The model.
        context: Inputs of the attacks.
        facts: Indices of the facts, at least one.
        done: Called after each batch with the number of tokens that were read.

    Returns:
        For each attack the scores of the facts, by name.
    """
    queries = [[list(attack.queries(context, i)) for i in facts] for attack in attacks]
    every = [query for by_fact in queries for of_fact in by_fact for query in of_fact]
    answers = dict(zip(every, score_answers(lm, every, context.batch_tokens, done), strict=True))
    together = []
    for attack, by_fact in zip(attacks, queries, strict=True):
        scores = [
            attack.score(context, i, [answers[query] for query in of_fact])
            for i, of_fact in zip(facts, by_fact, strict=True)
        ]
        together.append({name: [of_fact[name] for of_fact in scores] for name in scores[0]})
    return together


def attack_together(
    attacks: Sequence[QueryAttack], lm: EditableLM, context: AttackContext, done: Callable[[int], object] = int
) -> dict[QueryAttack, dict[str, Tensor]]:
    """For each attack, by name, the scores of all n facts, float64; processes share the facts."""
    mine = list(rank_shard(range(len(context.facts))))
    found = scores_together(attacks, lm, context, mine or [0], done)
    scores = [_of_all_facts(by_name, mine, len(context.facts), lm.device) for by_name in found]
    return dict(zip(attacks, scores, strict=True))


def _of_all_facts(
    by_name: Mapping[str, Sequence[float]], mine: Sequence[int], count: int, device: torch.device
) -> dict[str, Tensor]:
    """Scores of all facts, from those of this process's."""
    scores = torch.zeros(len(by_name), count, dtype=torch.float64, device=device)
    if mine:
        scores[:, mine] = torch.tensor([*by_name.values()], dtype=torch.float64, device=device)
    return {name: row.clone() for name, row in zip(by_name, all_reduce(scores)[0].cpu(), strict=True)}


@dataclass(frozen=True, kw_only=True)
class LayerAttack(Attack):
    """An attack that looks for the answer in the state after each layer."""

    layers: int
    """Number of layers to look at, lowest first: the model's depth for all."""

    @abstractmethod
    def hits(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Sequence[Sequence[float]]:
        """For each of some facts and each layer, 1 if the answer is recovered and 0 if not."""

    def scores(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """Recovered from any layer, and from each, the lowest being 0."""
        check_layers(range(self.layers), len(lm.layers))
        hits = self.hits(lm, context, facts)
        by_layer = {f"{self.name}_layer_{layer}": [row[layer] for row in hits] for layer in range(self.layers)}
        return {self.name: [max(row) for row in hits]} | by_layer


def mean(values: Sequence[float]) -> float:
    """Mean, or ``UNDEFINED`` of none."""
    return sum(values) / len(values) if values else UNDEFINED


def share_below(values: Sequence[float], tie: float = 0.0) -> float:
    """Share of the other values that are smaller than the first; ties, up to a difference of ``tie``, count half."""
    first, *others = values
    return mean([0.5 * (1 + (first - other > tie) - (other - first > tie)) for other in others])
