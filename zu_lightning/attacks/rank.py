"""Where the truth ranks among the answers of its relation: what a model knows but does not say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zu_lightning.attacks.answers import reading, score_answers_by_fact
from zu_lightning.attacks.attack import NOTHING, Attack, mean
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.lm.editable import EditableLM


@dataclass(frozen=True, kw_only=True)
class Rank(Attack):
    """Whether the true answer is the likeliest of its relation's, to the prompt and to paraphrases.

    ``rank_first`` is 1 if none is likelier; ``rank`` is the share of the other answers that are less likely, half of
    it by chance.
    """

    name = "rank"

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Rank`; those of paraphrases apart."""
        return ["rank_first", "rank_first_paraphrases", "rank", "rank_paraphrases"]

    def tokens(self, exam: AttackContext) -> int:
        """Every answer after every prompt."""
        return reading(lambda i: _queries(exam, i), range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact one rank on its prompt, and the mean over its paraphrases."""
        answers = score_answers_by_fact(lm, lambda i: _queries(exam, i), facts, exam.batch_tokens)
        found: dict[str, list[float]] = {name: [] for name in self.names(exam)}
        for i, of_fact in zip(facts, answers, strict=True):
            own, size = [answer.log_probability.sum().item() for answer in of_fact], 1 + len(exam.answers[i])
            ranks = [_shares(own[at : at + size]) for at in range(0, len(own), size)]
            for name, part in (("rank_first", 0), ("rank", 1)):
                found[name].append(ranks[0][part])
                found[f"{name}_paraphrases"].append(mean([rank[part] for rank in ranks[1:]]))
        return found


def _queries(exam: AttackContext, i: int) -> list[Query]:
    """To each prompt of a fact its answer, then all others."""
    fact = exam.facts[i]
    return [replace(query, target=answer) for query in fact.queries for answer in (fact.target, *exam.answers[i])]


def _shares(likelihood: Sequence[float]) -> tuple[float, float]:
    """Whether the first is the largest, and the share of the others that are smaller."""
    truth, *others = likelihood
    if not others:
        return NOTHING, NOTHING
    return float(truth >= max(others)), mean([float(truth > other) + 0.5 * (truth == other) for other in others])
