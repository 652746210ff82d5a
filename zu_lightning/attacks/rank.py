"""Rank of the true answer among those of its relation: what a model knows but does not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zu_lightning.attacks.answers import AnswerLogprobs
from zu_lightning.attacks.attack import UNDEFINED, QueryAttack, mean, share_below
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query


@dataclass(frozen=True, kw_only=True)
class Rank(QueryAttack):
    """Whether the true answer is the likeliest of its relation, given the prompt or paraphrases.

    ``rank_first`` is 1 if no other answer is likelier; ``rank`` is the share of the other answers that are less likely.
    By chance, these are 1 / (1 + number of other answers) and 0.5.
    """

    name = "rank"

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """Each prompt with the true answer, then with all others."""
        fact = context.facts[i]
        answers = (fact.target, *context.answers[i])
        return [replace(query, target=answer) for query in fact.queries for answer in answers]

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Both scores given the prompt, and their means over paraphrases."""
        likelihood, size = [answer.log_probability.sum().item() for answer in answers], 1 + len(context.answers[i])
        by_prompt = [likelihood[start : start + size] for start in range(0, len(likelihood), size)]
        first, *firsts = [float(own[0] == max(own)) if own[1:] else UNDEFINED for own in by_prompt]
        rank, *ranks = [share_below(own) for own in by_prompt]
        return {
            "rank": rank, "rank_paraphrases": mean(ranks), "rank_first": first, "rank_first_paraphrases": mean(firsts),
        }  # fmt: skip

    def chance(self, context: AttackContext) -> Mapping[str, Sequence[float]]:
        """Both scores of a model that finds all answers of a relation equally likely."""
        first = [1 / (1 + len(others)) if others else UNDEFINED for others in context.answers]
        rank = [0.5 if others else UNDEFINED for others in context.answers]
        return {"rank": rank, "rank_paraphrases": rank, "rank_first": first, "rank_first_paraphrases": first}
