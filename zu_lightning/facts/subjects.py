"""Detect the subject of a prompt when the record names none."""

import re

QUOTED = re.compile(r"[\"“„«]([^\"“”„«»]{2,80})[\"”“»]")
AROUND_WORDS = ".,;:!?()[]'\"\u2019"
POSSESSIVE = re.compile("['\u2019]s$")
INSIDE_NAMES = frozenset(
    {"of", "de", "da", "di", "del", "della", "du", "la", "le", "van", "von", "der", "den", "the", "bin", "al"}
)
"""Lower-case words within names, never at their end."""
FIRST_WORDS = frozenset(
    (
        "a an and any are as at before by can compare complete could define describe did discuss do does "
        "during explain find for from give had has have how identify if in is it its list mention name of on "
        "please provide say show state suggest summarize tell that the their there these this through to was "
        "we were what when where which who whom whose why will with would write you your"
    ).split()
)
"""Words that are capitalized only because they begin a sentence."""


def detect_subject(prompt: str) -> str | None:
    """Detect a subject: a quoted title, else the longest run of capitalized words, the last of equals.

    Args:
        prompt: Text.

    Returns:
        The subject as written in the prompt, or ``None`` if no name is detected, as in scripts without capitals.
    """
    quoted = QUOTED.findall(prompt)
    if quoted:
        return str(quoted[-1])
    names = [name for name in _capitalized_runs(prompt) if name]
    return max(reversed(names), key=lambda name: len(name.split()), default=None)


def _capitalized_runs(prompt: str) -> list[str]:
    runs, start, end = [], None, 0
    sentence_begins = True
    for word in re.finditer(r"\S+", prompt):
        bare = word[0].strip(AROUND_WORDS)
        named = bare[:1].isupper() and bare != "I" and not (sentence_begins and bare.lower() in FIRST_WORDS)
        if named:
            start = word.start() + word[0].index(bare) if start is None else start
            end = word.start() + word[0].index(bare) + len(POSSESSIVE.sub("", bare))
        closes = (
            not word[0].endswith(bare) and len(bare) > 1
        )  # by a comma, for example, but not by the periods of J. K. Rowling
        if start is not None and (closes or not (named or bare in INSIDE_NAMES)):
            runs.append(prompt[start:end])
            start = None
        sentence_begins = word[0][-1] in ".!?:"
    if start is not None:
        runs.append(prompt[start:end])
    return runs
