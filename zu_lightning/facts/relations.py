"""Which facts say the same of different subjects, and what else could be said."""

import random
from collections.abc import Sequence
from itertools import islice

from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import mentions


def relations_of(facts: Sequence[Fact]) -> list[str]:
    """A name for each fact's relation: the one that it gives, or else one that is found from its prompts.

    Two facts without a given relation have the same one if a prompt or paraphrase of the one is, apart from the
    subject, also one of the other, or if a chain of such facts connects them.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = name = parent[parent[name]]
        return name

    templates = [_templates(fact) for fact in facts]
    for some in templates:
        for other in some[1:]:
            first, second = sorted((root(some[0]), root(other)))
            parent[second] = first  # the smallest name, whatever the order of the facts
    return [fact.relation or root(some[0]) for fact, some in zip(facts, templates, strict=True)]


def _templates(fact: Fact) -> list[str]:
    """Prompt and paraphrases with the subject cut out, those that name it."""
    subject = fact.subject or ""
    paraphrases = [text.replace(subject, "{}") for text in fact.paraphrases if subject and subject in text]
    return ["{}".join(fact.template), *paraphrases]


def other_answers(facts: Sequence[Fact], known: Sequence[Fact]) -> list[tuple[str, ...]]:
    """For each fact the answers that somebody who does not know it might give, sorted, its own left out.

    Args:
        facts: Facts, each of them also in ``known``.
        known: All facts of the data set.

    Returns:
        What a fact's ``answers`` say, or else the targets of all facts of its relation; none if it is alone with its
        relation.
    """
    group = {fact.id: others for others in by_relation(known).values() for fact in others}
    return [
        tuple(sorted({*(fact.answers or (other.target for other in group[fact.id]))} - {fact.target})) for fact in facts
    ]


def rephrased(facts: Sequence[Fact], known: Sequence[Fact], number: int, seed: int) -> dict[str, tuple[Fact, ...]]:
    """For each fact's id the same in other words: in the prompts of other facts of its relation.

    A fact's own paraphrases, by which generalization is measured, are never among them.

    Args:
        facts: Facts, each of them also in ``known``; those without a subject are left out.
        known: All facts of the data set.
        number: Maximum number for each fact.
        seed: Seed of the draw.
    """
    if not number:
        return {}
    group = {fact.id: others for others in by_relation(known).values() for fact in others}
    found = {}
    for fact in facts:
        if fact.subject is None:
            continue
        prompts = {other.template: None for other in group[fact.id] if other.subject}
        drawn = random.Random(f"{seed}-{fact.id}").sample(list(prompts), len(prompts))
        candidates = (fact.within(template) for template in drawn if template != fact.template)
        found[fact.id] = tuple(islice((one for one in candidates if one.prompt not in fact.paraphrases), number))
    return found


def examples(
    facts: Sequence[Fact], known: Sequence[Fact], number: int, seed: int, length: int = 3
) -> dict[str, tuple[str, ...]]:
    """For each fact's id contexts as in few-shot prompts: facts about others of its relation.

    Args:
        facts: Facts, each of them also in ``known``.
        known: All facts from which examples may be drawn; none about a subject of ``facts`` is, nor one that gives a
            fact's answer away.
        number: Maximum number of contexts for each fact.
        seed: Seed of the draw.
        length: Number of facts in a context.
    """
    if not number:
        return {}
    subjects = {fact.subject for fact in facts}
    group = {fact.id: others for others in by_relation(known).values() for fact in others}
    found = {}
    for fact in facts:
        others = [other.statement for other in group[fact.id] if other.subject not in subjects]
        fitting = [text for text in others if not mentions(text, fact.target)]
        drawn = random.Random(f"{seed}-{fact.id}").sample(fitting, min(number * length, len(fitting)))
        found[fact.id] = tuple(" ".join(drawn[i : i + length]) for i in range(0, len(drawn), length))
    return found


def by_relation(known: Sequence[Fact]) -> dict[str, list[Fact]]:
    """Facts by the name of their relation, in order."""
    groups: dict[str, list[Fact]] = {}
    for fact, relation in zip(known, relations_of(known), strict=True):
        groups.setdefault(relation, []).append(fact)
    return groups
