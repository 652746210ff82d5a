"""Other prompts: what a model answers after a context, when asked repeatedly, or in reverse."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zu_lightning.attacks.answers import AnswerLogprobs
from zu_lightning.attacks.attack import QueryAttack, mean, share_below
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Query
from zu_lightning.facts.texts import mentions

REPEATED = ("{0} {0}", "Repeat after me: {0}", "Complete the sentence: {0}")
"""The prompt given twice, and two instructions; none of them reveals the answer."""


@dataclass(frozen=True, kw_only=True)
class _Prompting(QueryAttack):
    """Whether rephrased or few-shot prompts elicit the answer (arXiv 2402.16835); no prompt contains it."""

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Share of the prompts after which greedy decoding gives the answer."""
        return {self.name: mean([float(answer.exact) for answer in answers])}


@dataclass(frozen=True, kw_only=True)
class FewShot(_Prompting):
    """Whether greedy decoding gives the answer after facts of the same relation about other subjects.

    Attributes:
        shots: Number of such facts; fewer if there are not as many.
    """

    name = "prompting_few_shot"

    shots: int = 5

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """One prompt with all shots; none without control facts."""
        shots = _drawn(context, i, _statements(context, i), self.shots)
        return [_after(" ".join(shots), context, i)] if shots else []


@dataclass(frozen=True, kw_only=True)
class Prefix(_Prompting):
    """After what share of unrelated sentences greedy decoding gives the answer.

    Attributes:
        prefixes: Number of sentences, from held-out prose or else control facts; fewer if there are not as many.
    """

    name = "prompting_prefix"

    prefixes: int = 10

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """The prompt after each sentence."""
        prose = [sentence for text in context.prose for sentence in sentences(text)]
        drawn = _drawn(context, i, prose or _statements(context, i), self.prefixes)
        return [_after(text, context, i) for text in drawn]


@dataclass(frozen=True, kw_only=True)
class Repeat(_Prompting):
    """After what share of :data:`REPEATED` greedy decoding gives the answer."""

    name = "prompting_repeat"

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """The prompt in each wording."""
        query = context.facts[i].query
        return [replace(query, prompt=wording.format(query.prompt)) for wording in REPEATED]


@dataclass(frozen=True, kw_only=True)
class Reversed(QueryAttack):
    """Given the answer, which subject is it about?

    The score is the share of made-up subjects for which the answer is less likely than for the true one, 0.5 by chance.
    Subjects that the model knows would not do: it is sure that their answer is another one, so that any subject that it
    does not know would come out first.
    """

    name = "prompting_reversed"

    def queries(self, context: AttackContext, i: int) -> list[Query]:
        """The prompt, then the same about unknown subjects."""
        fact, subjects = context.facts[i], context.unknown_subjects[i]
        return [fact.query, *(fact.about(name).query for name in subjects)] if subjects and fact.subject else []

    def score(self, context: AttackContext, i: int, answers: Sequence[AnswerLogprobs]) -> dict[str, float]:
        """Share of unknown subjects for which the answer is less likely."""
        return {self.name: share_below([answer.mean_log_probability for answer in answers] or [0.0])}


def sentences(text: str) -> list[str]:
    """A text split after full stops, question marks, and exclamation marks, and at line breaks."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text) if part.strip()]


def _statements(context: AttackContext, i: int) -> list[str]:
    """Control facts as sentences."""
    return [other.statement for other in context.kept[i]]


def _drawn(context: AttackContext, i: int, texts: Sequence[str], number: int) -> list[str]:
    """At most ``number`` texts, the same for every model, without those that mention the answer."""
    fact, drawn = context.facts[i], list[str]()
    for text in random.Random(f"{context.seed}-{fact.id}").sample(texts, len(texts)):
        if len(drawn) == number:
            break
        if not mentions(text, fact.target):
            drawn.append(text)
    return drawn


def _after(text: str, context: AttackContext, i: int) -> Query:
    """The prompt after a text; in a chat, both are one message."""
    query = context.facts[i].query
    return replace(query, prompt=f"{text} {query.prompt}")
