"""Which facts are forgotten, which are only measured, and which are protected."""

import random
from collections.abc import Mapping, Sequence

from zu_lightning.facts.fact import Fact
from zu_lightning.runtime.errors import InputError


def split_facts(
    facts: Sequence[Fact],
    forget: int | Sequence[str],
    retain: int | Sequence[str] = 0,
    protect: int | Sequence[str] = 0,
    *,
    seed: int = 0,
    split_halves: bool = False,
    by_record: bool = False,
    answered: Sequence[Fact] | None = None,
) -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Split facts into three disjoint sets, each by its number or by its ids.

    Args:
        facts: All facts.
        forget: Facts to forget: how many, drawn by seed, or their ids.
        retain: Retained facts that are only measured, likewise.
        protect: Retained facts that the method must preserve, likewise; if there are fewer, all that are left.
        seed: Seed of the draw. A set does not depend on the sizes of those after it in this list.
        split_halves: Whether retained facts are drawn from the first half of ``facts`` and facts to forget from the
            second, as in the authors' release.
        by_record: Whether whole records are drawn: numbers and halves are then of records, and the facts of a drawn
            record stay together. A fact of several records belongs to the first set that draws it.
        answered: The facts that the model answers: only these are drawn, while ids may name any. By default all.

    Returns:
        Forget set, retain set, and protected set.

    Raises:
        InputError: There are too few facts, an id does not exist, or one is in two lists.
    """
    sizes = {"forget": forget, "retain": retain, "protect": protect}
    by_id = {fact.id: fact for fact in facts}
    lists = {f"{kind}_ids": ids for kind, ids in sizes.items() if not isinstance(ids, int)}
    taken = _checked(lists, by_id)
    units = _units(facts if answered is None else answered, by_record)
    first_half = set(list(units)[: len(units) // 2])
    free = [
        name
        for name in random.Random(seed).sample(list(units), len(units))
        if any(fact.id not in taken for fact in units[name])
    ]

    def choose(kind: str) -> list[Fact]:
        wanted = sizes[kind]
        if not isinstance(wanted, int):
            return [by_id[name] for name in dict.fromkeys(wanted)]
        pool = [name for name in free if not split_halves or (name in first_half) == (kind != "forget")]
        if kind == "protect":
            wanted = min(wanted, len(pool))
        if not 0 <= wanted <= len(pool):
            what = "records" if by_record else "facts"
            remedy = f"{len(pool)} of the {len(units)} {what} are left to draw from: ask for at most that many."
            if answered is not None:
                total = len(_units(facts, by_record))
                remedy = (
                    f"the model answers {len(units)} of {total} {what}, and {len(pool)} are left to draw from: ask for "
                    "at most that many, give more, or draw others, too."
                )
            raise InputError(f"{kind}_num", wanted, remedy)
        drawn = {fact.id: fact for name in pool[:wanted] for fact in units[name] if fact.id not in taken}
        taken.update(drawn)
        free[:] = [name for name in free if any(fact.id not in taken for fact in units[name])]
        return list(drawn.values())

    chosen = choose("forget")
    if not chosen:
        name = "forget_num" if isinstance(forget, int) else "forget_ids"
        raise InputError(name, forget, "there is nothing to forget: ask for at least one fact.")
    return chosen, choose("retain"), choose("protect")


def without(facts: Sequence[Fact], others: Sequence[Fact]) -> list[Fact]:
    """The facts without those that are among others by prompt and answer.

    Raises:
        InputError: A remaining fact has the id of one of the others.
    """
    queries, ids = {fact.query for fact in others}, {fact.id for fact in others}
    left = [fact for fact in facts if fact.query not in queries]
    both = [fact.id for fact in left if fact.id in ids]
    if both:
        remedy = "facts of `path` that say something else have these ids: give the facts to forget ids of their own."
        raise InputError("forget_path", both[:5], remedy)
    return left


def _units(facts: Sequence[Fact], by_record: bool) -> dict[str, list[Fact]]:
    """Units of the draw by name: each fact, or the facts of each record, in order."""
    units: dict[str, list[Fact]] = {}
    for fact in facts:
        for name in (fact.records or (fact.id,)) if by_record else (fact.id,):
            units.setdefault(name, []).append(fact)
    return units


def _checked(lists: Mapping[str, Sequence[str]], by_id: Mapping[str, Fact]) -> set[str]:
    """All ids of the lists; refuses ids in two lists, and ids that no fact has."""
    taken: set[str] = set()
    for name, ids in lists.items():
        both = sorted(set(ids) & taken)
        if both:
            raise InputError(name, both, "these facts are in another list, too: remove them from one.")
        taken |= set(ids)
    for name, ids in lists.items():
        unknown = [fact_id for fact_id in ids if fact_id not in by_id]
        if unknown:
            raise InputError(name, unknown[:5], f"these are not ids of the {len(by_id)} facts: correct the list.")
    return taken
