"""Relations: facts with the same predicate about different subjects, and their shared prompts and answers."""

import random
from collections.abc import Collection, Sequence
from itertools import islice

from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import mentions


class Relations:
    """All facts of a data set, grouped by relation.

    A fact's relation is its ``relation``, or else inferred from prompts: two facts without a given relation have the
    same one if they share a prompt or paraphrase apart from the subject, directly or through a chain of other facts.

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
        """Answers of the same kind, sorted, without the fact's own: its ``answers``, or those of its relation."""
        return tuple(sorted({*(fact.answers or (other.target for other in self.of(fact)))} - {fact.target}))

    def rephrased(self, facts: Sequence[Fact], number: int, seed: int) -> dict[str, tuple[Fact, ...]]:
        """By each fact's id, the fact with prompts of other facts of its relation.

        A fact's own paraphrases, on which generalization is measured, are never among them.

        Args:
            facts: Facts; those without a subject are left out.
            number: Maximum number for each fact.
            seed: Seed of the draw.
        """
        rephrased = {}
        for fact in facts if number else ():
            if fact.subject is None:
                continue
            prompts = {other.template: None for other in self.of(fact) if other.subject}
            drawn = random.Random(f"{seed}-{fact.id}").sample(list(prompts), len(prompts))
            candidates = (fact.within(template) for template in drawn if template != fact.template)
            new = (candidate for candidate in candidates if candidate.prompt not in fact.paraphrases)
            rephrased[fact.id] = tuple(islice(new, number))
        return rephrased

    def examples(
        self, facts: Sequence[Fact], number: int, seed: int, *, without: Collection[str] = (), length: int = 3
    ) -> dict[str, tuple[str, ...]]:
        """By each fact's id, few-shot contexts: facts of its relation about other subjects.

        Args:
            facts: Facts; no example is about one of their subjects, or contains the fact's answer.
            number: Maximum number of contexts for each fact.
            seed: Seed of the draw.
            without: Ids of facts that are not used as examples.
            length: Number of facts in a context.
        """
        subjects, contexts = {fact.subject for fact in facts}, {}
        for fact in facts if number else ():
            others = [o.statement for o in self.of(fact) if o.subject not in subjects and o.id not in without]
            fitting = [text for text in others if not mentions(text, fact.target)]
            drawn = random.Random(f"{seed}-{fact.id}").sample(fitting, min(number * length, len(fitting)))
            contexts[fact.id] = tuple(" ".join(drawn[i : i + length]) for i in range(0, len(drawn), length))
        return contexts


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
    return [fact.relation or root(prompts[0]) for fact, prompts in zip(facts, templates, strict=True)]


def _templates(fact: Fact) -> list[str]:
    """The prompt, and the paraphrases that contain the subject, with the subject cut out."""
    subject = fact.subject or ""
    paraphrases = [text.replace(subject, "{}") for text in fact.paraphrases if subject and subject in text]
    return ["{}".join(fact.template), *paraphrases]
