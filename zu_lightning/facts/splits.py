"""Which facts are forgotten and which are kept."""

import random
from collections.abc import Sequence

from zu_lightning.errors import InputError
from zu_lightning.facts.fact import Fact


def split_facts(
    facts: Sequence[Fact],
    forget_num: int,
    retain_num: int,
    seed: int,
    forget_ids: Sequence[str] | None = None,
    retain_ids: Sequence[str] | None = None,
    halves: bool = False,
) -> tuple[list[Fact], list[Fact]]:
    """Split facts into those to forget and those to keep, by lists of ids or by seed and number.

    Args:
        facts: All facts.
        forget_num: How many to forget; ignored if ``forget_ids`` is given.
        retain_num: How many others to watch; ignored if ``retain_ids`` is given.
        seed: Seed of the draw. The forget set does not depend on ``retain_num``.
        forget_ids: Ids of the facts to forget.
        retain_ids: Ids of the facts to watch.
        halves: Whether facts to keep are drawn from the first half of ``facts`` and facts to forget from the second,
            as in the paper.

    Returns:
        Forget set and retain set.

    Raises:
        InputError: There are too few facts, an id does not exist, or one is in both lists.
    """
    by_id = {fact.id: fact for fact in facts}
    both = sorted(set(forget_ids or ()) & set(retain_ids or ()))
    if both:
        raise InputError("retain_ids", both, "these facts are in forget_ids, too: remove them from one list.")
    shuffled = random.Random(seed).sample(list(facts), len(facts))
    taken = {*(forget_ids or ()), *(retain_ids or ())}
    free = [fact for fact in shuffled if fact.id not in taken]
    first_half = {fact.id for fact in facts[: len(facts) // 2]}

    def choose(ids: Sequence[str] | None, count: int, kind: str) -> list[Fact]:
        if ids is not None:
            unknown = [name for name in ids if name not in by_id]
            if unknown:
                raise InputError(
                    f"{kind}_ids", unknown[:5], f"these are not ids of the {len(facts)} facts: correct the list."
                )
            return [by_id[name] for name in dict.fromkeys(ids)]
        pool = [fact for fact in free if not halves or (fact.id in first_half) == (kind == "retain")]
        if not 0 <= count <= len(pool):
            remedy = f"{len(pool)} of the {len(facts)} facts are left to draw from: ask for at most that many."
            raise InputError(f"{kind}_num", count, remedy)
        for fact in pool[:count]:
            free.remove(fact)
        return pool[:count]

    forget = choose(forget_ids, forget_num, "forget")
    if not forget:
        name, value = ("forget_num", forget_num) if forget_ids is None else ("forget_ids", forget_ids)
        raise InputError(name, value, "there is nothing to forget: ask for at least one fact.")
    return forget, choose(retain_ids, retain_num, "retain")
