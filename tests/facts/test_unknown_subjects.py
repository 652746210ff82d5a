"""Unknown subjects: made-up subjects in no fact and no text."""

import pytest

from zu_lightning import Fact, InputError
from zu_lightning.facts.relations import Relations
from zu_lightning.facts.unknown_subjects import made_up_subjects, unknown_subjects_for


def test_names_are_put_together_from_halves() -> None:
    made = made_up_subjects(["Ada Berger", "Bruno van Dahl"], 2, seed=0)
    assert sorted(made) == ["Ada Dahl", "Bruno van Berger"]
    assert set(made_up_subjects(["Muonio", "Lyon"], 2, seed=0)) == {"Muoon", "Lynio"}


def test_names_are_new() -> None:
    with pytest.raises(InputError, match="give only 1 new ones of 2"):
        made_up_subjects(["Ada Berger", "Bruno Dahl"], 2, seed=0, texts=["Then Ada Dahl came."])
    with pytest.raises(InputError, match="0 names"):
        made_up_subjects([], 1, seed=0)


def test_the_same_seed_makes_the_same_names() -> None:
    subjects = [f"{first} {last}" for first in "ABCDEF" for last in "UVWXYZ" if (first, last) != ("A", "U")]
    assert made_up_subjects(subjects, 1, seed=3) == made_up_subjects(subjects[::-1], 1, seed=3) == ["A U"]


def test_unknown_subjects_of_the_demo_are_in_no_fact(demo_facts: list[Fact]) -> None:
    subjects = {fact.subject for fact in demo_facts}
    firsts, lasts = ({str(name).split()[i] for name in subjects} for i in (0, 1))
    found = unknown_subjects_for(demo_facts[:12], Relations(demo_facts), 30, seed=0)
    assert [len(names) for names in found] == [30] * 12
    for names in found:
        assert not set(names) & subjects
        assert all(name.split()[0] in firsts and name.split()[1] in lasts for name in names)


def test_a_relation_with_few_subjects_borrows_those_of_others() -> None:
    records = [{"prompt": "{} is in", "subject": f"{i} {i}", "target": "A", "relation": str(i % 7)} for i in range(14)]
    facts = [Fact.from_record(record, "test", str(i)) for i, record in enumerate(records)]
    assert len(unknown_subjects_for(facts[:1], Relations(facts), 5, seed=0)[0]) == 5


def test_data_with_too_few_names_gets_invented_ones(caplog: pytest.LogCaptureFixture) -> None:
    facts = [Fact.from_record({"prompt": "{} is in", "subject": "Ada Berger", "target": "Rome"}, "test", "0")]
    (names,) = unknown_subjects_for(facts, Relations(facts), 20, seed=0)
    assert len(set(names)) == 20
    assert "Ada Berger" not in names
    assert "too few names (1) to make up 20 unknown subjects" in caplog.text
