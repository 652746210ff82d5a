"""Other ways to ask: what a model says if the question comes in a context, again, or the other way round."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from zu_lightning.attacks.answers import AnswerLogprobs, reading, score_answers_by_fact
from zu_lightning.attacks.attack import Attack, mean
from zu_lightning.attacks.context import UNKNOWN_SUBJECTS, AttackContext
from zu_lightning.facts.fact import Fact, Query
from zu_lightning.facts.texts import mentions
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.errors import require_positive

REPEATED = ("{0} {0}", "Repeat after me: {0}", "Complete the sentence: {0}")
"""The question asked twice, and two instructions; none of them gives the answer."""


@dataclass(frozen=True, kw_only=True)
class Prompting(Attack):
    """Whether prompts in other clothes bring an answer back (arXiv 2402.16835).

    - ``prompting_few_shot``: whether greedy decoding gives the answer after facts about others, of the same relation.
    - ``prompting_prefix``: after what share of sentences that have nothing to do with the fact it does.
    - ``prompting_repeat``: after what share of :data:`REPEATED` it does.
    - ``prompting_reversed``: given the answer, who is it about? The share of made-up subjects of whom the answer is
      less likely than of the true one; half of it by chance. Subjects that the model knows would not do: it is sure
      that their answer is another, so that whoever it does not know comes out first.

    No context contains the answer.

    Attributes:
        shots: Number of facts about others; fewer if there are not as many.
        prefixes: Number of sentences, of held-out prose or else facts about others; fewer if there are not as many.
    """

    name = "prompting"

    shots: int = 5
    prefixes: int = 10

    def __post_init__(self) -> None:
        for option in ("shots", "prefixes"):
            require_positive(f"prompting.{option}", getattr(self, option))

    def names(self, exam: AttackContext) -> list[str]:
        """See :class:`Prompting`."""
        return [*self._kinds(exam)]

    def tokens(self, exam: AttackContext) -> int:
        """Every prompt with its answer."""
        return sum(reading(ask, range(len(exam.facts))) for ask, _ in self._kinds(exam).values())

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact one of each kind; facts without others or without unknown subjects lack some."""
        return {
            name: [score(answers) for answers in score_answers_by_fact(lm, ask, facts, exam.batch_tokens)]
            for name, (ask, score) in self._kinds(exam).items()
        }

    def _kinds(
        self, exam: AttackContext
    ) -> dict[str, tuple[Callable[[int], Sequence[Query]], Callable[[Sequence[AnswerLogprobs]], float]]]:
        """For each score what is asked about a fact, and what the answers are worth."""
        prose = [sentence for text in exam.prose for sentence in sentences(text)]
        return {
            "prompting_few_shot": (lambda i: self._few_shot(exam, i), _exact),
            "prompting_prefix": (lambda i: self._prefixed(exam, i, prose), _exact),
            "prompting_repeat": (lambda i: _repeated(exam.facts[i]), _exact),
            "prompting_reversed": (lambda i: _of_others(exam, i), _less_likely_of_others),
        }

    def _few_shot(self, exam: AttackContext, i: int) -> list[Query]:
        shots = _drawn(exam, i, _statements(exam, i), self.shots)
        return [_after(" ".join(shots), exam.facts[i])] if shots else []

    def _prefixed(self, exam: AttackContext, i: int, prose: Sequence[str]) -> list[Query]:
        return [_after(text, exam.facts[i]) for text in _drawn(exam, i, prose or _statements(exam, i), self.prefixes)]


def sentences(text: str) -> list[str]:
    """A text cut after its full stops, question marks, and exclamation marks, and at line breaks."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text) if part.strip()]


def _statements(exam: AttackContext, i: int) -> list[str]:
    """Facts of the same relation about others, as sentences."""
    return [other.statement for other in exam.kept[i]]


def _drawn(exam: AttackContext, i: int, contexts: Sequence[str], number: int) -> list[str]:
    """Some contexts, the same for every model, without those that give the answer away."""
    fact, found = exam.facts[i], list[str]()
    for text in random.Random(f"{exam.seed}-{fact.id}").sample(contexts, len(contexts)):
        if len(found) == number:
            break
        if not mentions(text, fact.target):
            found.append(text)
    return found


def _after(context: str, fact: Fact) -> Query:
    """The question after a context, of one message with it in a chat."""
    return replace(fact.query, prompt=f"{context} {fact.prompt}")


def _repeated(fact: Fact) -> list[Query]:
    return [replace(fact.query, prompt=wording.format(fact.prompt)) for wording in REPEATED]


def _of_others(exam: AttackContext, i: int) -> list[Query]:
    """The fact, then the same about unknown subjects."""
    fact, unknown_subjects = exam.facts[i], exam.unknown_subjects[i][:UNKNOWN_SUBJECTS]
    return (
        [fact.query, *(fact.about(name).query for name in unknown_subjects)]
        if unknown_subjects and fact.subject
        else []
    )


def _exact(answers: Sequence[AnswerLogprobs]) -> float:
    return mean([float(answer.exact) for answer in answers])


def _less_likely_of_others(answers: Sequence[AnswerLogprobs]) -> float:
    own, *others = [answer.mean_log_probability for answer in answers] or [0.0]
    return mean([float(own > other) + 0.5 * (own == other) for other in others])
