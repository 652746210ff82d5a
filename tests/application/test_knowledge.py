"""The facts about the world: true to the tables, and asked so that only the fact itself gives the answer."""

import csv
import json
import re

import pytest

from data.knowledge import FOLDER, NEIGHBORS, TEMPLATES, entries, facts
from zu_lightning import Fact, read_facts


@pytest.fixture(scope="module")
def shipped() -> list[Fact]:
    """Reading refuses ids and queries that occur twice."""
    return read_facts(FOLDER / "facts.jsonl")


def test_the_shipped_file_is_what_the_tables_say() -> None:
    lines = (FOLDER / "facts.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == facts(), "run `python -m data.knowledge`"
    assert len(lines) >= 1500


def test_a_table_names_each_subject_once_and_tells_something_about_it() -> None:
    rows = []
    for path in (FOLDER / "tables").glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            rows += list(csv.reader(file))[1:]
    # Two things of one name, such as a country and a state, would be forgotten together.
    names = [row[0].removeprefix("the ").lower() for row in rows]
    assert len(set(names)) == len(names)
    assert all(any(row[1:]) and all(cell == cell.strip() for cell in row) for row in rows)
    assert {entry.relation for entry in entries()} == TEMPLATES.keys()


def test_every_prompt_names_the_subject_where_its_template_says(shipped: list[Fact]) -> None:
    for fact in shipped:
        assert fact.subject is not None
        assert fact.relation is not None
        prompt, *paraphrases = TEMPLATES[fact.relation]
        before, after = prompt.split("{}")
        assert fact.template in ((before, after), (f"{before}the ", after))
        assert len(fact.paraphrases) == len(set(paraphrases) - {prompt}) >= 3
        assert all(fact.subject in text for text in fact.paraphrases)


def test_neighbors_are_other_facts_of_the_relation_with_other_answers(shipped: list[Fact]) -> None:
    relation_of = {fact.query: fact.relation for fact in shipped}
    for fact in shipped:
        assert len(set(fact.neighbors)) == NEIGHBORS
        for neighbor in fact.neighbors:
            assert relation_of[neighbor] == fact.relation
            assert neighbor.target != fact.target
            assert fact.subject is not None
            assert fact.subject not in neighbor.prompt


def test_heldout_text_is_prose_that_names_no_subject() -> None:
    documents = (FOLDER / "heldout.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(documents)) == len(documents) >= 60
    assert all(60 <= len(document.split()) <= 120 for document in documents)
    subjects = "|".join(re.escape(entry.subject) for entry in entries())
    named = re.compile(rf"(?<!\w)(?:{subjects})s?(?!\w)", re.IGNORECASE)
    assert not [match for document in documents for match in named.findall(document)]
