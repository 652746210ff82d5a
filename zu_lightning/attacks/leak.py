"""Leaks: how probable it is that an attacker who asks several times sees the answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zu_lightning.attacks.answers import AnswerLogprobs, reading, score_answers_by_fact
from zu_lightning.attacks.attack import Attack, mean
from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import require_positive


@dataclass(frozen=True, kw_only=True)
class Leak(Attack):
    """The expected share of attackers who see the exact answer among k samples at temperature 1.

    If p is the probability of the answer to the prompt it is ``1 - (1 - p)^k``, so that nothing need be sampled
    (leak@k, arXiv 2511.04934, counts samples instead). An answer that comes later in a longer text does not count:
    see :class:`~zu_lightning.attacks.sampling.Sampling`. What follows the answer does not matter.

    Attributes:
        samples: k, how many samples an attacker draws.
    """

    name = "leak"

    samples: int = 20

    def __post_init__(self) -> None:
        require_positive("leak.samples", self.samples)

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Leak`; the mean over paraphrases apart."""
        return ["leak", "leak_paraphrases"]

    def tokens(self, exam: AttackContext) -> int:
        """Every prompt with its answer, whatever the number of samples."""
        return reading(lambda i: exam.facts[i].queries, range(len(exam.facts)))

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact that of its prompt, and the mean over its paraphrases."""
        answers = score_answers_by_fact(lm, lambda i: exam.facts[i].queries, facts, exam.batch_tokens)
        return {
            "leak": [self._leak(prompt) for prompt, *_ in answers],
            "leak_paraphrases": [mean([self._leak(answer) for answer in others]) for _, *others in answers],
        }

    def _leak(self, answer: AnswerLogprobs) -> float:
        return float(1 - (1 - answer.probability) ** self.samples)
