"""Prompt variants of facts, so that keys and targets do not depend on a single prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zu_lightning.facts.fact import Fact
from zu_lightning.lm.tokens import Prompt


class PromptVariant(NamedTuple):
    """One prompt variant of one fact.

    Attributes:
        number: Number of the variant, 0 for the bare prompt.
        position: Index of the fact.
        context: Text before the prompt.
        fact: The fact, with the variant's prompt.
    """

    number: int
    position: int
    context: str
    fact: Fact

    def prompt(self, answer: str = "") -> Prompt:
        """The whole prompt, with an answer if given."""
        return Prompt.about(self.fact, context=self.context, answer=answer)


@dataclass(frozen=True)
class PromptVariants:
    """Variants of each fact's prompt: after contexts, then rephrased, then after examples.

    Attributes:
        contexts: Texts before the prompts, the first one empty.
        rephrased: By a fact's id, the fact with other prompts, which get no context.
        examples: By a fact's id, contexts of its own, such as facts about other subjects.
    """

    contexts: Sequence[str] = ("",)
    rephrased: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def of(self, fact: Fact) -> list[tuple[str, Fact]]:
        """Each variant as a context and the fact with its prompt; the bare prompt first."""
        return [
            *((context, fact) for context in self.contexts),
            *(("", other) for other in self.rephrased.get(fact.id, ())),
            *((context, fact) for context in self.examples.get(fact.id, ())),
        ]

    def longest(self, fact: Fact, answer: str = "") -> Prompt:
        """The longest variant in characters, with an answer if given."""
        context, variant = max(self.of(fact), key=lambda pair: len(pair[0]) + len(pair[1].prompt))
        return Prompt.about(variant, context=context, answer=answer)

    def count(self, facts: Sequence[Fact]) -> int:
        """Number of variants of the fact that has most of them; at least 1."""
        return max((len(self.of(fact)) for fact in facts), default=1)

    def rows(self, facts: Sequence[Fact]) -> list[PromptVariant]:
        """The variants of all facts, the facts of each variant together; some facts may have fewer variants."""
        variants = [self.of(fact) for fact in facts]
        return [
            PromptVariant(number, i, *variants[i][number])
            for number in range(self.count(facts))
            for i in range(len(facts))
            if number < len(variants[i])
        ]
