"""How facts are put, so that keys and vectors do not depend on a single prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zu_lightning.facts.fact import Fact


class PromptVariant(NamedTuple):
    """A fact, put in some way.

    Attributes:
        number: Which way, 0 for the bare prompt.
        position: Which fact.
        context: Text before the prompt.
        fact: The fact, with the prompt that is used.
    """

    number: int
    position: int
    context: str
    fact: Fact


@dataclass(frozen=True)
class PromptVariants:
    """The ways to put facts: their prompts after contexts, then the same in other words, then after examples.

    Attributes:
        contexts: Texts to put before the prompts, the first one empty.
        rephrased: For a fact's id the fact with other prompts, which get no context.
        examples: For a fact's id contexts of its own, such as facts about others.
    """

    contexts: Sequence[str] = ("",)
    rephrased: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def of(self, fact: Fact) -> list[tuple[str, Fact]]:
        """Each way to put a fact, as a context and the fact with its prompt; the bare prompt first."""
        return [
            *((context, fact) for context in self.contexts),
            *(("", other) for other in self.rephrased.get(fact.id, ())),
            *((context, fact) for context in self.examples.get(fact.id, ())),
        ]

    def rows(self, facts: Sequence[Fact]) -> list[PromptVariant]:
        """All facts in all ways, ways outermost; some facts may have fewer of them."""
        ways = [self.of(fact) for fact in facts]
        return [
            PromptVariant(number, i, *ways[i][number])
            for number in range(max(map(len, ways)))
            for i in range(len(facts))
            if number < len(ways[i])
        ]
