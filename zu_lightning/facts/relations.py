"""Relations: facts that say the same of different subjects, and prompts and answers that they share."""

import random
from collections.abc import Collection, Sequence
from itertools import islice

from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import mentions


class Relations:
    """All facts of a data set, grouped by relation.

    A fact's relation is the one that it gives, or else it is found from prompts: two facts without a given relation
    have the same one if a prompt or paraphrase of one is, apart from the subject, also one of the other, or if a chain
    of such facts connects them.

    Args:
        facts: All facts.
    """

    def __init__(self, facts: Sequence[Fact]) -> None:
        self.names = {fact.id: name for fact, name in zip(facts, relations_of(facts), strict=True)}
        """Name of each fact's relation, by its id."""
        self.groups: dict[str, list[Fact]] = {}
        """Facts of each relation, in order."""
        for fact in facts:
            self.groups.setdefault(self.names[fact.id], []).append(fact)

    def of(self, fact: Fact) -> list[Fact]:
        """The facts of a fact's relation, itself included."""
        return self.groups[self.names[fact.id]]

    def other_answers(self, fact: Fact) -> tuple[str, ...]:
        """Answers of the same kind, sorted, without the fact's own: those that it lists, or those of its relation."""
        return tuple(sorted({*(fact.answers or (other.target for other in self.of(fact)))} - {fact.target}))

    def rephrased(self, facts: Sequence[Fact], number: int, seed: int) -> dict[str, tuple[Fact, ...]]:
        """For each fact's id, the fact in the prompts of other facts of its relation.

        A fact's own paraphrases, by which generalization is measured, are never among them.

        Args:
            facts: Facts; those without a subject are left out.
            number: Maximum number for each fact.
            seed: Seed of the draw.
        """
        found = {}
        for fact in facts if number else ():
            if fact.subject is None:
                continue
            prompts = {other.template: None for other in self.of(fact) if other.subject}
            drawn = random.Random(f"{seed}-{fact.id}").sample(list(prompts), len(prompts))
            candidates = (fact.within(template) for template in drawn if template != fact.template)
            found[fact.id] = tuple(islice((one for one in candidates if one.prompt not in fact.paraphrases), number))
        return found

    def examples(
        self, facts: Sequence[Fact], number: int, seed: int, *, without: Collection[str] = (), length: int = 3
    ) -> dict[str, tuple[str, ...]]:
        """For each fact's id, few-shot contexts: facts about other subjects of its relation.

        Args:
            facts: Facts; no example is about one of their subjects, or contains a fact's answer.
            number: Maximum number of contexts for each fact.
            seed: Seed of the draw.
            without: Ids of facts that are not used as examples.
            length: Number of facts in a context.
        """
        subjects, found = {fact.subject for fact in facts}, {}
        for fact in facts if number else ():
            others = [o.statement for o in self.of(fact) if o.subject not in subjects and o.id not in without]
            fitting = [text for text in others if not mentions(text, fact.target)]
            drawn = random.Random(f"{seed}-{fact.id}").sample(fitting, min(number * length, len(fitting)))
            found[fact.id] = tuple(" ".join(drawn[i : i + length]) for i in range(0, len(drawn), length))
        return found


def relations_of(facts: Sequence[Fact]) -> list[str]:
    """The name of each fact's relation, see :class:`Relations`."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    templates = [_templates(fact) for fact in facts]
    for first, *others in templates:
        for other in others:
            smaller, larger = sorted((root(first), root(other)))
            parent[larger] = smaller  # the smallest name, whatever the order of the facts
    return [fact.relation or root(own[0]) for fact, own in zip(facts, templates, strict=True)]


def _templates(fact: Fact) -> list[str]:
    """Prompt and paraphrases with the subject cut out, those that contain it."""
    subject = fact.subject or ""
    paraphrases = [text.replace(subject, "{}") for text in fact.paraphrases if subject and subject in text]
    return ["{}".join(fact.template), *paraphrases]
