"""Unknown subjects: made-up subjects that no model can know."""

import logging
import random
from collections.abc import Iterable, Sequence

from zu_lightning.facts.fact import Fact
from zu_lightning.facts.relations import Relations
from zu_lightning.runtime.errors import InputError

log = logging.getLogger(__name__)

INVENTED = (
    "Orvelin Thasker", "Maraude Quillfen", "Tobrin Vashkell", "Elzira Montquay", "Hesper Drovanik", "Calyx Brennovar",
    "Junith Okstrand", "Perrick Alduveen", "Ysolda Kemmerath", "Davrin Soltwick", "Nerissel Farquand", "Oswin Trellaby",
)  # fmt: skip
"""Invented names, for data with too few names to recombine."""
ATTEMPTS = 200
"""Number of attempts for each name."""
ENOUGH = 12
"""If a relation has fewer subjects, those of all facts are recombined."""
MEASURED = 20
"""Number of unknown subjects for each fact with which scores and attacks compare."""
MEASURED_SEED = 1_000_003
"""Added to the seed with which targets draw theirs."""


def made_up_subjects(subjects: Sequence[str], number: int, seed: int, texts: Iterable[str] = ()) -> list[str]:
    """New names from halves of others, such as first and last names.

    Args:
        subjects: Names whose halves are recombined.
        number: Number of new names.
        seed: Seed of the draw.
        texts: No new name occurs in one of these, nor in ``subjects``.

    Returns:
        ``number`` different names.

    Raises:
        InputError: There are too few combinations.
    """
    names = sorted({name for name in subjects if len(name) > 1})
    starts, ends = zip(*map(_halves, names), strict=True) if names else ((), ())
    everything = "\n".join([*names, *texts])
    rng, made = random.Random(seed), dict[str, None]()
    for _ in range(ATTEMPTS * number if names else 0):
        if len(made) == number:
            return list(made)
        name = rng.choice(starts) + rng.choice(ends)
        if name not in everything:
            made[name] = None
    remedy = f"{len(names)} names of subjects give only {len(made)} new ones of {number}: give a file of names."
    raise InputError("unknown_subjects", None, remedy)


def _halves(name: str) -> tuple[str, str]:
    """The parts of a name before and from its last word, or the halves of a single word."""
    cut = name.rfind(" ") + 1 or -(-len(name) // 2)
    return name[:cut], name[cut:]


def unknown_subjects_for(
    facts: Sequence[Fact], relations: Relations, number: int, seed: int, texts: Iterable[str] = ()
) -> list[tuple[str, ...]]:
    """For each fact, made-up subjects of the same kind, from halves of the subjects of its relation.

    With too few names in the data, invented ones are used, with a warning.

    Args:
        facts: Facts with subjects.
        relations: All facts of the data set.
        number: Number for each fact; facts of a relation share them.
        seed: Seed of the draw.
        texts: No unknown subject occurs in one of these.

    Raises:
        InputError: Even the invented names have too few combinations.
    """
    everybody = sorted({fact.subject for group in relations.groups.values() for fact in group if fact.subject})
    everything, made = "\n".join([*everybody, *texts]), dict[str, tuple[str, ...]]()
    for fact in facts:
        name = relations.names[fact.id]
        if name not in made:
            subjects = {other.subject for other in relations.groups[name] if other.subject}
            names = sorted(subjects) if len(subjects) >= ENOUGH else everybody
            try:
                made[name] = tuple(made_up_subjects(names, number, seed, [everything]))
            except InputError:
                log.warning(
                    "the data has too few names (%d) to make up %d unknown subjects: using invented ones. To choose "
                    "them yourself: data.unknown_subjects", len(set(names)), number,
                )  # fmt: skip
                made[name] = tuple(made_up_subjects(INVENTED, number, seed, [everything]))
    return [made[relations.names[fact.id]] for fact in facts]


def unknown_subjects_to_measure(
    facts: Sequence[Fact], relations: Relations, seed: int, texts: Iterable[str] = ()
) -> list[tuple[str, ...]]:
    """For each fact, made-up subjects with which scores and attacks compare; none for facts without a subject.

    Targets have other ones, so that nothing is measured with the names that an edit was made with.

    Args:
        facts: Facts.
        relations: All facts of the data set.
        seed: Seed of the request.
        texts: No unknown subject occurs in one of these.

    Raises:
        InputError: Even the invented names have too few combinations.
    """
    about = [fact for fact in facts if fact.subject]
    names = unknown_subjects_for(about, relations, MEASURED, seed + MEASURED_SEED, texts)
    by_id = {fact.id: own for fact, own in zip(about, names, strict=True)}
    return [by_id.get(fact.id, ()) for fact in facts]
