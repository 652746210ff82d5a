"""The option ``--method``: naming another class starts from that method's own defaults."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from zu_lightning.editing.method import Method
from zu_lightning.renamed_options import translate_config


def named_method(arguments: Sequence[str]) -> str | None:
    """The method that a command line chooses last, by an option or in a configuration file; ``None`` if it names none.

    Args:
        arguments: The command line's words.
    """
    chosen = None
    words = [part for word in arguments for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, value in pairwise(words):
        if option in ("--method", "--method.class_path"):
            chosen = value
        elif option in ("--config", "-c") and Path(value).is_file():
            config = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
            chosen = class_of(translate_config(config, quiet=True) if isinstance(config, dict) else None) or chosen
    return chosen


def class_of(config: Any) -> str | None:
    """The method class that a configuration names."""
    method = config.get("method") if isinstance(config, Mapping) else None
    name = method.get("class_path") if isinstance(method, Mapping) else method
    return name if isinstance(name, str) else None


def without_other_methods(config: dict[str, Any], chosen: str | None) -> dict[str, Any]:
    """A configuration without its method if another one is chosen: none of its options may survive."""
    own = class_of(config)
    if own is None or chosen is None or own.rpartition(".")[2] == chosen.rpartition(".")[2]:
        return config
    return {name: section for name, section in config.items() if name != "method"}


def module_of(chosen: str) -> str:
    """The LightningModule that runs a method, given by its class path or its short name.

    An unknown name gets the default module: the parser says what is wrong with it.
    """
    short = chosen.rpartition(".")[2]
    if "." in chosen:
        import importlib

        try:
            importlib.import_module(chosen.rpartition(".")[0])
        except ImportError:
            return Method.module
    found = [one.module for one in _subclasses(Method) if one.__name__ == short]
    return found[0] if found else Method.module


def _subclasses(cls: type[Method]) -> list[type[Method]]:
    return [cls, *(found for child in cls.__subclasses__() for found in _subclasses(child))]
