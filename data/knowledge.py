"""Facts about the world, for models that were pretrained on text: made from the tables in ``data/knowledge/tables``.

The first column of a table names subjects, and each other column is a relation with one answer per subject; an empty
cell says nothing. A ``the`` before a name is part of the prompts, but not of the subject.
"""

import csv
import json
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zu_lightning.runtime.files import replacing

FOLDER = Path(__file__).parent / "knowledge"
NEIGHBORS = 5

TEMPLATES: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of {} is the city of",
        "The capital city of {} is",
        "In {}, the capital city is called",
        "The flag of {} flies in the capital,",
    ),
    "language": (
        "In {}, the official language is",
        "The official language of {} is",
        "Official documents in {} are written in",
        "In {}, the state uses the official language,",
    ),
    "currency": (
        "The monetary unit of {} is the",
        "The unit of currency in {} is the",
        "Prices in {} are given in the local currency, the",
        "The currency of {} is the",
    ),
    "continent": (
        "The country of {} is part of the continent of",
        "The nation of {} belongs to the continent of",
        "On the map, {} is part of the continent of",
        "Geographically, {} is a country in",
    ),
    "country": (
        "If you travel to {}, you are in the country of",
        "On a map, you find {} in the country of",
        "The country that {} belongs to is",
        "The country where {} is located is",
    ),
    "city": (
        "The location of {} is the city of",
        "Visitors can see {} in the city of",
        "A famous sight, {}, is located in the city of",
        "Guides show visitors {} in the city of",
    ),
    "state capital": (
        "In the United States, the capital of {} is the city of",
        "The capital of the state of {} is",
        "The state government of {} meets in",
        "The capital city of the state of {} is",
    ),
    "symbol": (
        "The chemical symbol of {} is",
        "The chemical symbol for {} is",
        "In the periodic table, {} has the symbol",
        "In chemical formulas, {} is written as",
    ),
    "atomic number": (
        "The element {} has atomic number",
        "In the periodic table, {} is element number",
        "The atomic number of {} is",
        "The number of protons in an atom of {} is",
    ),
    "class": (
        "Among animals, the {} is a type of",
        "In biology, the {} is classified as a type of",
        "The {} is a type of",
        "Like all its relatives, the {} is a kind of",
    ),
    "young": (
        "When {} young are born, each of them is called a",
        "A baby {} is called a",
        "When the {} is young, it is called a",
        "The child of the {} is called a",
    ),
    "novelist": (
        "The novel {} was written by",
        "The famous novel {} by",
        "The classic novel {} is a work by",
        "The book {} is by",
    ),
    "playwright": (
        "The play {} was written by",
        "The stage play {} is a work by",
        "On stage tonight is {}, a play by",
        "The famous play {} by",
    ),
    "poet": (
        "The poem {} was written by",
        "The famous poem {} is by",
        "The poem {} is a work by",
        "The verses of {} were written by",
    ),
    "author": (
        "The book {} was written by",
        "The book {} is a work by",
        "The ideas in {} are those of its author,",
        "The famous book {} by",
    ),
    "composer": (
        "The opera {} was composed by",
        "The music of the opera {} was written by",
        "The opera {} is a work by",
        "Tonight the opera house gives {}, an opera by",
    ),
    "painter": (
        "The painting {} was painted by",
        "The museum shows the painting {} by",
        "The famous painting {} is a work by",
        "The picture {} is by",
    ),
    "founder": (
        "The company {} was founded by",
        "The founder of {} was",
        "The entrepreneur who founded {} was",
        "The history of {} began when it was founded by",
    ),
    "headquarters": (
        "The company {} is headquartered in",
        "The headquarters of {} are in",
        "The head office of {} is in",
        "The main office of {} is in the city of",
    ),
    "inventor": (
        "The invention of {} is credited to",
        "According to history, {} was invented by",
        "The person who invented {} was",
        "The inventor of {} was",
    ),
    "discoverer": (
        "The discovery of {} is credited to",
        "The discovery of {} was made by",
        "The scientist who discovered {} was",
        "The history books say that {} was discovered by",
    ),
    "profession": (
        "The profession of {} was that of a famous",
        "Many people know {} as a famous",
        "The books about {} describe the life of a famous",
        "The life of {} was that of a great",
    ),
}
"""By relation, the prompt and then its paraphrases. In none of them does a subject start the sentence."""


class Entry(NamedTuple):
    """One cell of a table: what a relation says of a subject."""

    relation: str
    subject: str
    target: str
    article: str = ""
    """``the`` and a space for names that need it."""

    def filled(self, template: str) -> str:
        """A template with the subject in its place."""
        return template.replace("{}", self.article + self.subject)

    @property
    def id(self) -> str:
        """The id of the fact, such as ``capital-france``."""
        plain = unicodedata.normalize("NFKD", f"{self.relation} {self.subject}").encode("ascii", "ignore").decode()
        return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def entries() -> Iterator[Entry]:
    """All cells that are not empty, table by table."""
    for path in sorted((FOLDER / "tables").glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                (_, name), *cells = row.items()
                subject = name.removeprefix("the ")
                article = name.removesuffix(subject)
                yield from (Entry(relation, subject, target, article) for relation, target in cells if target)


def facts() -> list[dict[str, object]]:
    """Every entry as a record of the project's JSON Lines format."""
    groups: dict[str, list[Entry]] = {relation: [] for relation in TEMPLATES}
    for entry in entries():
        groups[entry.relation].append(entry)
    return [_fact(entry, group) for group in groups.values() for entry in group]


def _fact(entry: Entry, group: Sequence[Entry]) -> dict[str, object]:
    prompt, *paraphrases = TEMPLATES[entry.relation]
    others = [other for other in group if other.target != entry.target and entry.subject not in other.subject]
    return {
        "id": entry.id,
        "subject": entry.subject,
        "relation": entry.relation,
        "prompt": prompt.replace("{}", entry.article + "{}"),
        "target": entry.target,
        "paraphrases": [entry.filled(template) for template in paraphrases],
        "neighbors": [
            {"prompt": other.filled(prompt), "target": other.target}
            for other in random.Random(entry.id).sample(others, NEIGHBORS)
        ],
    }


def write_facts(path: Path) -> None:
    """Write ``facts.jsonl``."""
    with replacing(path) as temporary:
        lines = (json.dumps(fact, ensure_ascii=False) for fact in facts())
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_facts(FOLDER / "facts.jsonl")
