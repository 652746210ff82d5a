"""The option ``--method``: a method that is named starts from its own defaults, whatever was named before."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from inspect import isabstract
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

import zu_lightning
from zu_lightning.editing.method import Method
from zu_lightning.renamed_options import translate_config


@dataclass(frozen=True)
class MethodChoice:
    """The method that a command line names last.

    Attributes:
        name: Its class path, or its short name; ``None`` if no method is named.
        content: Content of the configuration file whose options of the method count; ``None`` if none does.
    """

    name: str | None = None
    content: str | None = None

    @classmethod
    def of(cls, arguments: Sequence[str]) -> "MethodChoice":
        """Read the words of a command line, and the configuration files that they name, in order."""
        choice = cls()
        words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
        for option, value in pairwise(words):
            if option in ("--method", "--method.class_path"):
                is_same = choice.name is not None and short(choice.name) == short(value)
                choice = cls(value, choice.content if is_same else None)
            elif option in ("--config", "-c") and Path(value).is_file():
                content = Path(value).read_text(encoding="utf-8")
                config = yaml.safe_load(content)
                named = class_of(translate_config(config, quiet=True)) if isinstance(config, dict) else None
                choice = cls(named, content) if named else choice
        return choice

    def without_others(self, config: dict[str, Any], content: str) -> dict[str, Any]:
        """A configuration without the options of its method, if those of another place count."""
        if class_of(config) is None or self.name is None or content == self.content:
            return config
        return {name: section for name, section in config.items() if name != "method"}

    def defaults(self, otherwise: type[Method]) -> dict[str, dict[str, str]]:
        """The parser's defaults for the method and for the module that runs it.

        The default of the method must be the class itself: jsonargparse would keep options of another default.

        Args:
            otherwise: The default if no method is named, or an unknown one, which the parser reports.
        """
        name = self.name or otherwise.__name__
        if "." in name:
            with suppress(ImportError):
                import_module(name.rpartition(".")[0])
        method = next((method for method in methods() if method.__name__ == short(name)), None)
        class_path = f"zu_lightning.{otherwise.__name__}" if method is None else name
        return {"method": {"class_path": class_path}, "model": {"class_path": (method or otherwise).module}}


def short(class_path: str) -> str:
    """The name of a class without its module."""
    return class_path.rpartition(".")[2]


def class_of(config: Mapping[str, Any]) -> str | None:
    """The method class that a configuration names."""
    method = config.get("method")
    name = method.get("class_path") if isinstance(method, Mapping) else method
    return name if isinstance(name, str) else None


def known_methods() -> list[str]:
    """Names of the project's methods, in alphabetical order."""
    own = (method for method in methods() if method.__module__.startswith(f"{zu_lightning.__name__}."))
    return sorted({method.__name__ for method in own if not isabstract(method)} - {Method.__name__})


def methods(cls: type[Method] = Method) -> list[type[Method]]:
    """All method classes that are imported."""
    return [cls, *(found for child in cls.__subclasses__() for found in methods(child))]
