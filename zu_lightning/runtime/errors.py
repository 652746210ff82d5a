"""The one kind of error that a user causes and can correct."""

import math


class InputError(ValueError):
    """Bad input, refused before any expensive work.

    Args:
        parameter: What is at fault, by the name that the library gives it, such as ``forget_num``; ``train.py`` turns
            it into the option of that name.
        value: What was given; ``None`` if it is missing.
        remedy: What is wrong and what to do about it.
        where: File and line for the content of a file; ``None`` for an argument.
    """

    def __init__(self, parameter: str, value: object, remedy: str, where: str | None = None) -> None:
        super().__init__(parameter, value, remedy, where)
        self.parameter, self.value, self.remedy, self.where = parameter, value, remedy, where

    def __str__(self) -> str:
        return self.message(self.parameter)

    def message(self, name: str) -> str:
        """The whole message, with the parameter called ``name``."""
        place = f"{self.where}: " if self.where else ""
        state = "is missing" if self.value is None else f"is {self.value!r:.120}"
        return f"{place}{name} {state}: {self.remedy}"


def require_positive(parameter: str, value: float | None, *, or_zero: bool = False) -> None:
    """Refuse a number that is infinite, NaN, or negative, and zero unless ``or_zero``; ``None`` is not given.

    Raises:
        InputError: It is one of these.
    """
    if value is not None and not (math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        raise InputError(parameter, value, f"give {'zero or ' if or_zero else ''}a positive number.")
