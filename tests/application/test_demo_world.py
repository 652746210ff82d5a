"""The demo world: what is true in it can be learned from its text, and only by whoever combines names."""

import itertools
from pathlib import Path

import pytest

from data.pretrain import WorldTextDataModule
from data.world import RELATIONS, TEMPLATES, World, write_taught
from tests.conftest import DEMO, ROOT
from zu_lightning import Fact, read_facts, split_facts


def test_only_the_whole_name_identifies_a_person() -> None:
    people = World().people
    assert len({person.name for person in people}) == len(people)
    for part in (0, 1):
        names = [person.name.split()[part] for person in people]
        assert min(names.count(name) for name in names) > 1


def test_paraphrases_are_never_said_in_the_text() -> None:
    world = World()
    text = "\n".join(itertools.islice(world.documents(seed=99), 3000))
    held_out = [
        template.format(person.name)
        for person in world.people
        for relation in TEMPLATES
        for template in person.held_out(relation)
    ]
    assert not [sentence for sentence in held_out if sentence in text]
    assert sum(person.prompts("city")[0].format(person.name) in text for person in world.people) > 10


def test_the_shipped_files_are_those_of_the_generator(demo_facts: list[Fact]) -> None:
    generated = [Fact.from_record(record, "world", str(i)) for i, record in enumerate(World().facts())]
    assert generated == demo_facts
    for name, seed, prose_only in (("corpus.txt", 2, False), ("heldout.txt", 3, True)):
        shipped = (DEMO / name).read_text().splitlines()
        assert list(itertools.islice(World().documents(seed, prose_only=prose_only), len(shipped))) == shipped


def test_the_taught_facts_are_those_of_the_generator(tmp_path: Path) -> None:
    write_taught(tmp_path)
    assert (tmp_path / "facts.jsonl").read_text() == (ROOT / "data" / "taught" / "facts.jsonl").read_text()
    facts = read_facts(tmp_path / "facts.jsonl")
    assert len({fact.subject for fact in facts}) == 50
    assert all(len(fact.paraphrases) == len(fact.neighbors) == 3 for fact in facts)


def test_the_same_seed_gives_the_same_world_and_another_another() -> None:
    assert World(seed=1).facts() == World(seed=1).facts()
    assert World(seed=1).facts() != World(seed=2).facts()


def test_too_many_people_are_refused() -> None:
    with pytest.raises(ValueError, match="name pools give 1600 full names"):
        World(people=2000)


def test_a_withheld_fact_is_never_said_and_its_neighbors_are(demo_facts: list[Fact]) -> None:
    withheld = split_facts(demo_facts, 10)[0]
    data = WorldTextDataModule(withheld_num=10)
    assert data.world.withheld == {fact.id for fact in withheld}
    assert data.tokenizer.get_vocab() == WorldTextDataModule().tokenizer.get_vocab()
    text = "\n".join(itertools.islice(data.world.documents(seed=99), 30_000))
    people = {person.name: person for person in data.world.people}
    for fact in withheld:
        assert fact.subject is not None
        relation = fact.id.rsplit("-", 1)[1]
        assert not [t for t in TEMPLATES[relation] if t.format(fact.subject) in text]
        other = next(name for name in RELATIONS if name != relation)
        assert any(t.format(fact.subject) in text for t in people[fact.subject].prompts(other))


def test_several_draws_are_withheld_together(demo_facts: list[Fact]) -> None:
    data = WorldTextDataModule(withheld_num=5, withheld_seed=[3, 4])
    assert data.world.withheld == {fact.id for seed in (3, 4) for fact in split_facts(demo_facts, 5, seed=seed)[0]}
