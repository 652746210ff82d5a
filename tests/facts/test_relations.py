"""Relations: what is said about different subjects, and what else could be said."""

from dataclasses import replace

from zu_lightning import Fact
from zu_lightning.facts.relations import Relations, relations_of


def fact(name: str, prompt: str, subject: str, target: str, *paraphrases: str) -> Fact:
    record = {"prompt": prompt, "subject": subject, "target": target, "paraphrases": list(paraphrases)}
    return Fact.from_record(record, "test", name)


FACTS = [
    fact("a", "{} lives in", "Ada", "Rome", "The home of Ada is in"),
    fact("b", "The home of {} is in", "Bob", "Oslo"),
    fact("c", "{} speaks", "Ada", "Dutch"),
    fact("d", "The city of {} is", "Cleo", "Rome", "{} lives in"),
]


def test_prompts_that_are_paraphrases_of_each_other_make_a_relation() -> None:
    a, b, c, d = relations_of(FACTS)
    assert a == b == d != c
    assert relations_of(FACTS[::-1])[::-1] == [a, b, c, d]


def test_a_relation_that_is_given_counts() -> None:
    given = [replace(one, relation="city") for one in FACTS[:2]]
    assert relations_of([*given, *FACTS[2:]])[:2] == ["city", "city"]
    assert [len(group) for group in Relations([*given, *FACTS[2:]]).groups.values()] == [2, 1, 1]


def test_other_answers_are_those_of_the_relation_or_those_that_are_given() -> None:
    assert [Relations(FACTS).other_answers(fact) for fact in FACTS] == [("Oslo",), ("Rome",), (), ("Oslo",)]
    asked = replace(FACTS[2], answers=("French", "Dutch", "Danish"))
    assert Relations(FACTS).other_answers(asked) == ("Danish", "French")


def test_the_demo_has_fifty_answers_for_each_of_six_relations(demo_facts: list[Fact]) -> None:
    relations = Relations(demo_facts)
    groups = relations.groups
    assert sorted(map(len, groups.values())) == [300] * 6
    assert {len(relations.other_answers(fact)) for fact in demo_facts[:60]} == {49}
    assert all(len({fact.id.rsplit("-", 1)[1] for fact in group}) == 1 for group in groups.values())


def test_a_fact_is_put_in_the_words_of_others_but_never_in_its_paraphrases(demo_facts: list[Fact]) -> None:
    found = Relations(demo_facts).rephrased(demo_facts[:12], 20, seed=0)
    for fact in demo_facts[:12]:
        others = found[fact.id]
        assert len(others) == 6, "ten templates less its own and three paraphrases"
        assert not {fact.prompt, *fact.paraphrases} & {other.prompt for other in others}
        assert all(other.prompt[: other.subject_end].endswith(str(fact.subject)) for other in others)
        assert {other.target for other in others} == {fact.target}
    assert Relations(demo_facts).rephrased(demo_facts[:12], 2, seed=0) == {
        name: some[:2] for name, some in found.items()
    }
    assert Relations(demo_facts).rephrased(demo_facts[:12], 6, seed=1) != found
    assert Relations(demo_facts).rephrased(demo_facts[:1], 0, seed=0) == {}


def test_examples_are_facts_about_others_that_do_not_give_the_answer(demo_facts: list[Fact]) -> None:
    some = demo_facts[:12]
    subjects = {str(fact.subject) for fact in some}
    found = Relations(demo_facts).examples(some, 4, seed=0)
    for fact in some:
        relation = fact.id.rsplit("-", 1)[1]
        assert len(set(found[fact.id])) == 4
        for context in found[fact.id]:
            stated = [other for other in demo_facts if other.statement in context]
            assert len(stated) == 3
            assert {other.id.rsplit("-", 1)[1] for other in stated} == {relation}
            assert not subjects & {str(other.subject) for other in stated}
            assert fact.target not in {other.target for other in stated}
    assert Relations(demo_facts).examples(some, 4, seed=0) == found
    assert Relations(demo_facts).examples(some, 4, seed=1) != found
    assert Relations(demo_facts).examples(some, 0, seed=0) == {}


def test_there_are_as_many_examples_as_there_are_others() -> None:
    assert Relations(FACTS).examples(FACTS[:1], 4, seed=0) == {"a": ("The home of Bob is in Oslo.",)}
