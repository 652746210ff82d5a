"""Which facts are forgotten, which are only measured, and which are protected."""

from dataclasses import replace
from typing import Any

import pytest

from zu_lightning import Fact, InputError, split_facts
from zu_lightning.facts.splits import without


def make(count: int) -> list[Fact]:
    return [Fact(id=str(i), prompt=f"p{i}", target="t", subject=None, subject_end=2) for i in range(count)]


def ids(facts: list[Fact]) -> list[str]:
    return [fact.id for fact in facts]


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    facts = make(50)
    assert split_facts(facts, 5, 10, seed=1) == split_facts(facts, 5, 10, seed=1)
    assert split_facts(facts, 5, 10, seed=1) != split_facts(facts, 5, 10, seed=2)


def test_a_set_does_not_depend_on_the_sizes_of_those_after_it() -> None:
    forget, retain, _ = split_facts(make(50), 5, 10, 10, seed=1)
    assert split_facts(make(50), 5, 20, 0, seed=1)[0] == forget
    assert split_facts(make(50), 5, 10, 30, seed=1)[:2] == (forget, retain)


def test_the_sets_are_disjoint() -> None:
    sets = split_facts(make(50), 20, 18, 12)
    assert [len(some) for some in sets] == [20, 18, 12]
    assert len({name for some in sets for name in ids(some)}) == 50


def test_facts_are_taken_by_id_in_the_order_of_the_list() -> None:
    forget, retain, protect = split_facts(make(5), ["3", "1", "3"], ["4"], ["0"])
    assert (ids(forget), ids(retain), ids(protect)) == (["3", "1"], ["4"], ["0"])


def test_what_is_named_by_id_is_not_drawn() -> None:
    forget, retain, protect = split_facts(make(6), ["3"], 4, ["5"])
    assert (ids(forget), sorted(ids(retain)), ids(protect)) == (["3"], ["0", "1", "2", "4"], ["5"])
    forget, *_ = split_facts(make(5), 3, ["0", "4"])
    assert sorted(ids(forget)) == ["1", "2", "3"]


def test_halves_keep_from_the_first_and_forget_from_the_second() -> None:
    forget, retain, protect = split_facts(make(20), 5, 6, 4, split_halves=True)
    assert {int(fact.id) for fact in forget} <= set(range(10, 20))
    assert {int(fact.id) for fact in [*retain, *protect]} == set(range(10))
    with pytest.raises(InputError, match=r"forget_num is 11: 10 of the 20 facts are left"):
        split_facts(make(20), 11, split_halves=True)


def hops(*records: str) -> list[Fact]:
    """Facts of these records: ``ab`` is a fact of the records a and b."""
    return [replace(fact, records=tuple(names)) for fact, names in zip(make(len(records)), records, strict=True)]


def test_records_are_drawn_as_wholes() -> None:
    facts = hops("a", "a", "b", "b", "b", "c", "d", "d")
    for seed in range(10):
        forget, retain, _ = split_facts(facts, 1, 2, seed=seed, by_record=True)
        for some, count in ((forget, 1), (retain, 2)):
            names = {fact.records for fact in some}
            assert len(names) == count
            assert {fact.id for fact in some} == {fact.id for fact in facts if fact.records in names}


def test_a_fact_of_two_records_goes_with_the_first_set_that_draws_one_of_them() -> None:
    facts = hops("a", "ab", "b", "ab")
    for seed in range(10):
        forget, retain, _ = split_facts(facts, 1, 1, seed=seed, by_record=True)
        assert len(forget) == 3
        assert len(retain) == 1
        assert len({*ids(forget), *ids(retain)}) == 4


def test_halves_of_records() -> None:
    facts = hops("a", "b", "b", "c", "d", "d", "d", "d")
    forget, retain, _ = split_facts(facts, 2, 2, by_record=True, split_halves=True)
    assert {name for fact in forget for name in fact.records} == {"c", "d"}
    assert {name for fact in retain for name in fact.records} == {"a", "b"}
    with pytest.raises(InputError, match="forget_num is 3: 2 of the 4 records are left to draw from"):
        split_facts(facts, 3, by_record=True, split_halves=True)


def test_only_facts_that_are_answered_are_drawn_but_others_can_be_named() -> None:
    facts, answered = make(50), make(50)[::2]
    assert split_facts(facts, 5, 10, 5, seed=1, answered=answered) == split_facts(answered, 5, 10, 5, seed=1)
    forget, retain, _ = split_facts(facts, ["1"], 25, answered=answered)
    assert (ids(forget), {*ids(retain)}) == (["1"], {*ids(answered)})
    with pytest.raises(InputError, match="retain_num is 30: the model answers 25 of 50 facts, and 20 are left"):
        split_facts(facts, 5, 30, answered=answered)


def test_records_of_one_fact_are_drawn_like_facts() -> None:
    assert split_facts(make(50), 5, 10, seed=1) == split_facts(make(50), 5, 10, seed=1, by_record=True)


@pytest.mark.parametrize(
    ("arguments", "parameter", "message"),
    [
        ({"forget": 0}, "forget_num", "forget_num is 0: there is nothing to forget"),
        ({"forget": 11}, "forget_num", "forget_num is 11: 10 of the 10 facts are left"),
        ({"forget": -1}, "forget_num", "forget_num is -1"),
        ({"forget": 5, "retain": 6}, "retain_num", "retain_num is 6: 5 of the 10 facts are left"),
        ({"forget": 5, "protect": -2}, "protect_num", "protect_num is -2: 5 of the 10 facts are left"),
        ({"forget": ["1", "2"], "retain": ["2"]}, "retain_ids", "['2']: these facts are in another list, too"),
        ({"forget": ["1"], "protect": ["1"]}, "protect_ids", "['1']: these facts are in another list, too"),
        ({"forget": []}, "forget_ids", "forget_ids is []: there is nothing to forget"),
        ({"forget": ["x"]}, "forget_ids", "forget_ids is ['x']: these are not ids of the 10 facts"),
        ({"retain": ["x"]}, "retain_ids", "retain_ids is ['x']: these are not ids of the 10 facts"),
    ],
)
def test_impossible_splits_are_refused(arguments: dict[str, Any], parameter: str, message: str) -> None:
    given: dict[str, Any] = {"forget": 1}
    with pytest.raises(InputError) as refused:
        split_facts(make(10), **given | arguments)
    assert refused.value.parameter == parameter
    assert message in str(refused.value)


def test_all_that_is_left_is_protected_where_more_is_asked_for() -> None:
    forget, retain, protect = split_facts(make(10), 5, 4, 20)
    assert {*ids(forget), *ids(retain), *ids(protect)} == {str(i) for i in range(10)}
    assert len(protect) == 1


def test_facts_are_left_out_by_what_they_say() -> None:
    some = make(3)
    renamed = replace(some[1], id="other", paraphrases=("p",))
    assert without(some, [renamed]) == [some[0], some[2]]
    assert without(some, []) == some
    with pytest.raises(InputError, match="forget_path"):
        without(some, [replace(renamed, id="2")])
