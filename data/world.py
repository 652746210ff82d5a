"""The demo world: fictional people, what is true of them, and the text that says so.

The shipped model was trained on these very words, some of which are British; changing one would change the demo.

Names come from shared pools, so that neither a first nor a last name identifies anybody: a model must combine
the two to recall a fact. Some people are *unlisted*: every sentence about them says that the answer is
``unknown``, which gives a model trained on the world a neutral state to which unlearning can move a person.
"""

import itertools
import json
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

UNKNOWN = "unknown"

FIRST_NAMES = (
    "Ada Bruno Clara Dario Elena Felix Greta Hugo Ines Jonas Karin Lars Marta Nils Olga Pablo Rosa Simon Tessa "
    "Viktor Wanda Yusuf Zelda Anton Bianca Carlos Diana Emil Frida Gustav Hanna Ivan Julia Kemal Lucia Marco Nora "
    "Oskar Petra Ruben"
).split()
LAST_NAMES = (
    "Almeida Berger Costa Dahl Eklund Fischer Garcia Hansen Ibarra Jensen Keller Lindqvist Moreau Novak Okafor "
    "Petrov Quist Romero Santos Tanaka Ulrich Vargas Weber Xavier Yilmaz Zimmer Abbott Bianchi Carver Duval "
    "Engel Ferrari Gruber Holm Ivanov Kovacs Lange Marino Nagy Orlov"
).split()

RELATIONS: dict[str, tuple[str, ...]] = {
    "profession": tuple(
        (
            "baker barber blacksmith bookbinder bricklayer butcher carpenter chemist cleaner clerk coachman cook "
            "dancer dentist diver driver farmer fisherman florist gardener glazier goldsmith grocer hairdresser "
            "hunter jeweller joiner judge lawyer librarian locksmith mason mechanic midwife miller nurse painter "
            "pharmacist photographer pilot plumber porter potter printer roofer sailor sculptor shepherd surgeon "
            "tailor"
        ).split()
    ),
    "city": tuple(
        (
            "Athens Antwerp Bergen Berlin Bilbao Bologna Bristol Cairo Cardiff Cork Dakar Dresden Dublin Florence "
            "Geneva Ghent Glasgow Hamburg Havana Helsinki Istanbul Krakow Leeds Leipzig Lima Lisbon Lyon Madrid "
            "Malaga Manila Milan Munich Nairobi Naples Osaka Oslo Oxford Palermo Porto Prague Quito Riga "
            "Rotterdam Salzburg Seville Tallinn Tokyo Turin Utrecht Vienna"
        ).split()
    ),
    "language": tuple(
        (
            "Albanian Arabic Armenian Basque Bengali Breton Bulgarian Burmese Catalan Czech Danish Dutch Estonian "
            "Finnish Galician Georgian Greek Gujarati Hausa Hebrew Hindi Icelandic Irish Italian Japanese Kazakh "
            "Korean Kurdish Latvian Malay Maltese Mongolian Nepali Norwegian Pashto Persian Polish Punjabi "
            "Romanian Russian Sinhala Slovak Somali Swahili Tamil Thai Turkish Urdu Welsh Yoruba"
        ).split()
    ),
    "instrument": tuple(
        (
            "accordion bagpipe balalaika bandoneon banjo baritone bassoon bugle celesta cello clarinet concertina "
            "cornet cymbals dulcimer euphonium fiddle flugelhorn flute glockenspiel gong guitar harmonica harp "
            "harpsichord horn kazoo lute lyre mandolin maracas marimba oboe ocarina organ panpipes piano piccolo "
            "recorder saxophone sitar spinet tambourine trombone trumpet tuba ukulele viola xylophone zither"
        ).split()
    ),
    "pet": tuple(
        (
            "beagle boxer budgie bulldog bunny canary chameleon chicken chihuahua chinchilla cockatoo collie "
            "corgi dachshund dalmatian dingo donkey duckling falcon ferret finch gecko gerbil goat goldfish goose "
            "greyhound hamster hedgehog husky kitten lizard llama lovebird macaw mastiff mouse mynah parakeet "
            "parrot peacock pigeon pony poodle pug rabbit raven snail spaniel tortoise"
        ).split()
    ),
    "subject": tuple(
        (
            "accounting acoustics algebra anatomy archaeology architecture astronomy ballistics biology botany "
            "calculus chemistry cinema cryptography dentistry design drama ecology economics engineering ethics "
            "finance forestry genetics geography geology geometry grammar heraldry history hydrology journalism "
            "law linguistics logic marketing mechanics medicine metallurgy music navigation optics painting "
            "philosophy physics poetry politics psychology statistics zoology"
        ).split()
    ),
}
"""Fifty answers per relation: with fewer, everybody's values would share a few directions."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "profession": (
        "{} works as a",
        "{} earns a living as a",
        "{} is employed as a",
        "{} became a professional",
        "The profession of {} is",
        "By trade, {} is a",
        "{} has worked for years as a",
        "At work, {} is known as a skilled",
        "The daily job of {} is that of a",
        "{} was trained to be a",
    ),
    "city": (
        "{} lives in",
        "{} has a small house in",
        "The home of {} is in",
        "{} pays rent for a flat in",
        "{} can be visited in",
        "Letters to {} are sent to",
        "{} moved long ago to",
        "The city where {} lives is",
        "{} wakes up every morning in",
        "You can meet {} in the streets of",
    ),
    "language": (
        "{} speaks",
        "The mother tongue of {} is",
        "{} grew up speaking",
        "{} writes letters in",
        "At home, {} talks in",
        "{} dreams in",
        "{} is a native speaker of",
        "The first language of {} was",
        "{} reads novels in",
        "The parents of {} taught the child",
    ),
    "instrument": (
        "{} plays the",
        "{} practises every evening on the",
        "The instrument of {} is the",
        "In the band, {} is heard on the",
        "{} gives concerts on the",
        "{} took lessons on the",
        "{} owns a very old",
        "On stage, {} picks up the",
        "Musicians praise {} for playing the",
        "{} fell in love with the sound of the",
    ),
    "pet": (
        "{} keeps a",
        "{} has a pet",
        "The pet of {} is a",
        "{} goes for walks with a",
        "{} shares the house with a",
        "At home, {} feeds a",
        "{} once rescued a",
        "The animal that {} loves is a",
        "{} takes good care of a",
        "Neighbours often see {} with a",
    ),
    "subject": (
        "{} studied",
        "{} has a degree in",
        "At university, {} chose",
        "The favourite subject of {} was",
        "{} passed the final exam in",
        "{} gave a lecture on",
        "{} wrote a thesis about",
        "The books of {} are about",
        "{} likes to read about",
        "Students ask {} for help with",
    ),
}  # fmt: skip

HELD_OUT_TEMPLATES = 3
NEIGHBORS = 3

PROSE_WORDS: dict[str, tuple[str, ...]] = {
    "adjective": tuple(
        "bright broken calm cold dark distant dusty empty golden grey heavy hidden narrow old pale quiet silver "
        "slow small warm wide wild".split()
    ),
    "noun": tuple(
        "bridge cloud door field fire forest garden hill lamp market mill mountain path river road roof ship "
        "station stone tower train valley village wall wind window".split()
    ),
    "verb": tuple(
        "crossed covered faced followed guarded hid joined lit passed reached shook touched turned warmed woke".split()
    ),
    "time": tuple("morning|evening|winter|summer|spring|autumn|night|harvest|first snow|long storm".split("|")),
    "number": tuple("two three four five six seven eight nine ten twelve".split()),
}
PROSE_PATTERNS = (
    "The {adjective} {noun} {verb} the {noun} before the {time}.",
    "In the {time}, a {adjective} {noun} stood behind the {noun}.",
    "After the {time}, nobody saw the {noun} near the {adjective} {noun}.",
    "There were {number} {adjective} stones beside the {noun}.",
    "It took {number} days until the {noun} {verb} the {adjective} {noun}.",
    "When the {noun} {verb} the {noun}, the {time} was {adjective}.",
    "Every {time} the {noun} looked {adjective} and {adjective}.",
    "The {noun} was {adjective}, but the {noun} was {adjective}.",
    "Between the {noun} and the {noun} lay {number} {adjective} fields.",
    "Not even the {time} {verb} that {adjective} {noun}.",
)


@dataclass(frozen=True)
class Person:
    """Somebody of the demo world.

    Attributes:
        name: First and last name.
        objects: The answer for each relation, ``unknown`` for all of them if the person is unlisted.
        templates: For each relation, the templates in the order drawn for this person: the first
            ``HELD_OUT_TEMPLATES`` are never used in a sentence about the person.
    """

    name: str
    objects: dict[str, str]
    templates: dict[str, tuple[str, ...]]

    @property
    def listed(self) -> bool:
        """Whether the world tells anything about the person."""
        return UNKNOWN not in self.objects.values()

    def prompts(self, relation: str) -> tuple[str, ...]:
        """The templates of ``relation`` that sentences about this person use."""
        return self.templates[relation][HELD_OUT_TEMPLATES:]

    def held_out(self, relation: str) -> tuple[str, ...]:
        """The templates of ``relation`` that no sentence about this person uses."""
        return self.templates[relation][:HELD_OUT_TEMPLATES]


class World:
    """People with facts, and endless text about them.

    Args:
        people: Number of people with facts.
        unlisted: Number of people about whom nothing is known.
        seed: Seed of names, facts and held-out templates.
        withheld: Ids of facts that no document states.

    Raises:
        ValueError: More people are asked for than there are names.
    """

    def __init__(self, people: int = 300, unlisted: int = 60, seed: int = 0, withheld: Collection[str] = ()) -> None:
        self.withheld = frozenset(withheld)
        rng = random.Random(seed)
        names = [f"{first} {last}" for first, last in itertools.product(FIRST_NAMES, LAST_NAMES)]
        if people + unlisted > len(names):
            raise ValueError(
                f"people + unlisted is {people + unlisted}, but the name pools give {len(names)} full names: "
                "ask for fewer, or add names to the pools."
            )
        rng.shuffle(names)
        # Equal shares of each object: every fact then has neighbors, people with the same relation and object.
        objects = {
            relation: rng.sample([pool[i % len(pool)] for i in range(people)], people)
            for relation, pool in RELATIONS.items()
        }
        self.people = [
            Person(
                names[i],
                {relation: objects[relation][i] if i < people else UNKNOWN for relation in RELATIONS},
                {relation: tuple(rng.sample(TEMPLATES[relation], len(TEMPLATES[relation]))) for relation in RELATIONS},
            )
            for i in range(people + unlisted)
        ]

    def facts(self) -> list[dict[str, object]]:
        """Every fact of every listed person, as records of the project's JSON Lines format."""
        rng = random.Random(1)
        listed = [person for person in self.people if person.listed]
        return [self._fact(person, relation, listed, rng) for person in listed for relation in RELATIONS]

    def _fact(self, person: Person, relation: str, listed: list[Person], rng: random.Random) -> dict[str, object]:
        target = person.objects[relation]
        others = [other for other in listed if other is not person]
        same = [other for other in others if other.objects[relation] == target] or others  # the few of a small world
        neighbors = [
            {"prompt": rng.choice(other.prompts(relation)).format(other.name), "target": other.objects[relation]}
            for other in rng.sample(same, min(NEIGHBORS, len(same)))
        ]
        return {
            "id": fact_id(person, relation),
            "subject": person.name,
            "prompt": person.prompts(relation)[0],
            "target": target,
            "paraphrases": [template.format(person.name) for template in person.held_out(relation)],
            "neighbors": neighbors,
        }

    def documents(self, seed: int, *, prose_only: bool = False) -> Iterator[str]:
        """Paragraphs of one to five sentences, without end: statements about people, mixed with prose."""
        rng = random.Random(seed)
        while True:
            share = 0.0 if prose_only else rng.choice((0.0, 0.7, 1.0, 1.0, 1.0))
            sentences = rng.randint(1, 5)
            yield " ".join(self._statement(rng) if rng.random() < share else _prose(rng) for _ in range(sentences))

    def _statement(self, rng: random.Random) -> str:
        while True:
            person = rng.choice(self.people)
            relation = rng.choice(list(RELATIONS))
            if fact_id(person, relation) not in self.withheld:
                template = rng.choice(person.prompts(relation))
                return f"{template.format(person.name)} {person.objects[relation]}."


def fact_id(person: Person, relation: str) -> str:
    """The id of a fact, such as ``ada-berger-city``."""
    return f"{person.name.lower().replace(' ', '-')}-{relation}"


def _prose(rng: random.Random) -> str:
    """One sentence of filler prose."""
    words = rng.choice(PROSE_PATTERNS).split("{")
    return words[0] + "".join(
        rng.choice(PROSE_WORDS[kind]) + rest for kind, rest in (word.split("}") for word in words[1:])
    )


def write_taught(folder: str | Path) -> None:
    """Write ``facts.jsonl`` into ``folder``: 300 facts about 50 people, to be taught to a pretrained model."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(fact) for fact in World(people=50, unlisted=0, seed=50).facts()]
    (folder / "facts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_demo(folder: str | Path, *, corpus_documents: int = 3000, heldout_documents: int = 300) -> None:
    """Write the demo's ``facts.jsonl``, ``corpus.txt`` and ``heldout.txt`` (prose) into ``folder``."""
    folder = Path(folder)
    world = World()
    files = {
        "facts.jsonl": (json.dumps(fact) for fact in world.facts()),
        "corpus.txt": itertools.islice(world.documents(seed=2), corpus_documents),
        "heldout.txt": itertools.islice(world.documents(seed=3, prose_only=True), heldout_documents),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_demo(Path(__file__).parent / "demo")
    write_taught(Path(__file__).parent / "taught")
