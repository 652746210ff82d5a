"""Which facts are forgotten and which are kept."""

from typing import Any

import pytest

from zu_lightning import Fact, InputError, split_facts


def make(count: int) -> list[Fact]:
    return [Fact(id=str(i), prompt=f"p{i}", target="t", subject=None, subject_end=2) for i in range(count)]


def ids(facts: list[Fact]) -> list[str]:
    return [fact.id for fact in facts]


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    facts = make(50)
    assert split_facts(facts, 5, 10, seed=1) == split_facts(facts, 5, 10, seed=1)
    assert split_facts(facts, 5, 10, seed=1) != split_facts(facts, 5, 10, seed=2)


def test_the_forget_set_does_not_depend_on_the_size_of_the_retain_set() -> None:
    assert split_facts(make(50), 5, 10, seed=1)[0] == split_facts(make(50), 5, 20, seed=1)[0]


def test_forget_and_retain_are_disjoint() -> None:
    forget, retain = split_facts(make(50), 20, 30, seed=0)
    assert (len(forget), len(retain)) == (20, 30)
    assert len({*ids(forget), *ids(retain)}) == 50


def test_facts_are_taken_by_id_in_the_order_of_the_list() -> None:
    forget, retain = split_facts(make(5), 0, 0, seed=0, forget_ids=["3", "1", "3"], retain_ids=["4"])
    assert (ids(forget), ids(retain)) == (["3", "1"], ["4"])


def test_what_is_named_by_id_is_not_drawn() -> None:
    forget, retain = split_facts(make(5), 0, 4, seed=0, forget_ids=["3"])
    assert ids(forget) == ["3"]
    assert sorted(ids(retain)) == ["0", "1", "2", "4"]
    forget, retain = split_facts(make(5), 3, 0, seed=0, retain_ids=["0", "4"])
    assert sorted(ids(forget)) == ["1", "2", "3"]


def test_halves_keep_from_the_first_and_forget_from_the_second() -> None:
    forget, retain = split_facts(make(20), 5, 10, seed=0, halves=True)
    assert {int(fact.id) for fact in forget} <= set(range(10, 20))
    assert {int(fact.id) for fact in retain} == set(range(10))
    with pytest.raises(InputError, match=r"forget_num is 11: 10 of the 20 facts are left"):
        split_facts(make(20), 11, 0, seed=0, halves=True)


@pytest.mark.parametrize(
    ("arguments", "parameter", "message"),
    [
        ({"forget_num": 0}, "forget_num", "forget_num is 0: there is nothing to forget"),
        ({"forget_num": 11}, "forget_num", "forget_num is 11: 10 of the 10 facts are left"),
        ({"forget_num": -1}, "forget_num", "forget_num is -1"),
        ({"forget_num": 5, "retain_num": 6}, "retain_num", "retain_num is 6: 5 of the 10 facts are left"),
        ({"forget_ids": ["1", "2"], "retain_ids": ["2"]}, "retain_ids", "['2']: these facts are in forget_ids, too"),
        ({"forget_ids": []}, "forget_ids", "forget_ids is []: there is nothing to forget"),
        ({"forget_ids": ["x"]}, "forget_ids", "forget_ids is ['x']: these are not ids of the 10 facts"),
        ({"retain_ids": ["x"]}, "retain_ids", "retain_ids is ['x']: these are not ids of the 10 facts"),
    ],
)
def test_impossible_splits_are_refused(arguments: dict[str, Any], parameter: str, message: str) -> None:
    given: dict[str, Any] = {"forget_num": 1, "retain_num": 0, "seed": 0}
    with pytest.raises(InputError) as refused:
        split_facts(make(10), **given | arguments)
    assert refused.value.parameter == parameter
    assert message in str(refused.value)
