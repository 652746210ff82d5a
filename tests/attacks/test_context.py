"""The context: what attackers know and ask."""

from dataclasses import replace

import pytest

from zu_lightning import Fact, ReadingOptions, Request, RetainText, split_facts
from zu_lightning.attacks.context import AttackContext


@pytest.fixture
def request_of_ten(demo_facts: list[Fact]) -> Request:
    forget, retain, _ = split_facts(demo_facts, 10, 20)
    return Request(forget, RetainText([], ReadingOptions()), retain=retain, known=demo_facts, heldout=["Prose."])


def test_others_are_of_the_same_relation_and_about_somebody_else(request_of_ten: Request) -> None:
    context = AttackContext.of(request_of_ten, 100)
    subjects = {fact.subject for fact in request_of_ten.forget}
    for fact, answers, kept in zip(context.facts, context.answers, context.kept, strict=True):
        assert len(answers) == 49
        assert fact.target not in answers
        assert len(kept) > 250
        assert not subjects & {other.subject for other in kept}
        assert {other.id.rsplit("-", 1)[1] for other in kept} == {fact.id.rsplit("-", 1)[1]}


def test_the_same_request_gives_the_same_context_and_no_more_facts_than_asked_for(request_of_ten: Request) -> None:
    assert AttackContext.of(request_of_ten, 3) == AttackContext.of(request_of_ten, 3)
    assert list(AttackContext.of(request_of_ten, 3).facts) == list(request_of_ten.forget[:3])
    assert AttackContext.of(replace(request_of_ten, seed=1), 3) != AttackContext.of(request_of_ten, 3)


def test_unknown_subjects_are_nobody_that_anything_names(request_of_ten: Request, demo_facts: list[Fact]) -> None:
    context = AttackContext.of(request_of_ten, 100)
    named = {fact.subject for fact in demo_facts}
    assert [len(names) for names in context.unknown_subjects] == [20] * 10
    assert not named & {name for names in context.unknown_subjects for name in names}


def test_few_facts_leave_out_what_they_cannot_give(facts: list[Fact]) -> None:
    context = AttackContext.of(Request(facts[:2], RetainText([], ReadingOptions())), 100)
    assert list(context.answers) == [(), ()]
    assert [len(names) for names in context.unknown_subjects] == [20, 20], "invented ones, since two names give too few"
    without_subject = AttackContext.of(Request(facts[2:], RetainText([], ReadingOptions())), 100)
    assert list(without_subject.unknown_subjects) == [(), ()]
