"""What is wrong with the command line or a configuration, in one line; jsonargparse takes a page."""

import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter
from lightning.pytorch.cli import LightningArgumentParser

from zu_lightning.cli.method_option import MethodChoice, known_methods
from zu_lightning.editing.method import Method
from zu_lightning.renamed_options import translate_config

TYPES = {
    "int": "an integer", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list",
    "dict": "a mapping", "NoneType": "null",
}  # fmt: skip
"""What values of a type are called."""

SECTIONS = (
    "model", "data", "trainer", "method", "attacks", "downstream", "representations", "config", "seed_everything",
)  # fmt: skip
"""What the names of options begin with, where jsonargparse gives them in full."""

ONE_TYPE = re.compile(
    r'Parser key "(?P<key>[^"]+)":\s+Expected an? (?P<types>.*)\. Got value: (?P<value>.*)', re.DOTALL
)
SEVERAL_TYPES = re.compile(
    r'Parser key "(?P<key>[^"]+)":.*Subtypes: \[(?P<types>.*)\]\s+Errors:.*\s+Given value: (?P<value>.*)', re.DOTALL
)
NOT_ACCEPTED = re.compile(
    r"(?:Group '(?P<group>.*?)' does not accept )?[Oo]ption '(?P<key>[^']+)'|unrecognized arguments: (?P<words>.*)"
)
OF_A_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":\s*(?P<rest>.*)', re.DOTALL)
"""Messages of jsonargparse: a value of the wrong type, or of none of several, an option that does not exist, others."""

A_TYPE = re.compile(r"(?:typing\.)?Literal\[(?P<values>.*?)\]|<class '(?P<name>.*?)'>|(?P<generic>[\w.]+)\[.*?\]")
"""Names that it gives to types: the last one is ``list[...]``, and other classes of more than one part."""

NO_SUCH_OPTION = "there is no such option: `python train.py %s --help` says how to list them."


class UsageError(SystemExit):
    """The command line or a configuration is wrong. jsonargparse lets exits through, and hides errors in others."""


class HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Leaves the lines of a description as they are."""


class CommandParser(ArgumentParser):
    """Leaves it to the caller to show an error."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Instead of the names of all options.

        Raises:
            UsageError: Always.
        """
        raise UsageError(message) from ex


class Parser(CommandParser, LightningArgumentParser):
    """The parser of Lightning's commands."""

    method = MethodChoice()
    """The method that the command line chooses; options of others in configuration files do not count."""

    def _load_config_parser_mode(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Take options by their old names, and leave out those of methods that are not chosen."""
        config = yaml.safe_load(content)
        if isinstance(config, dict):
            config = Parser.method.without_others(translate_config(config), content)
            content = yaml.safe_dump(config, sort_keys=False)
        return super()._load_config_parser_mode(content, *args, **kwargs)


def usage_line(message: str, option_of: Callable[[str], str], words: Sequence[str]) -> str:
    """A message of jsonargparse in one line that names the option, the value, and what is allowed.

    Args:
        message: What jsonargparse says.
        option_of: Gives the option that sets a parameter of the library.
        words: The command line.
    """

    def option(key: str) -> str:
        given = [word.partition("=")[0] for word in words if word.startswith("--")]
        same = [word for word in given if word == f"--{key}" or word.endswith(f".{key}")]
        if same or key.partition(".")[0] in SECTIONS:
            return same[-1] if same else f"--{key}"
        return option_of(key)  # in a file, and named without the section

    if found := ONE_TYPE.match(message) or SEVERAL_TYPES.match(message):
        allowed = dict.fromkeys(_allowed(found["types"]))
        if allowed:
            return f"{option(found['key'])} is {_one_line(found['value'])!r}: give {' or '.join(allowed)}."
    if found := NOT_ACCEPTED.search(message):
        names = [word.partition("=")[0].removeprefix("--") for word in (found["words"] or "").split()]
        keys = names or [".".join(filter(None, (found["group"], found["key"])))]
        command = words[0] if words and not words[0].startswith("-") else "fit"
        return f"{' '.join(map(option, keys))}: {NO_SUCH_OPTION % command}"
    if found := OF_A_KEY.match(message):
        return f"{option(found['key'])}: {_one_line(found['rest'])}"
    return _one_line(message)


def _allowed(types: str) -> Iterator[str]:
    """What may be given, by the names that jsonargparse gives to types."""
    for found in A_TYPE.finditer(types):
        if found["values"]:
            values = [value.strip("'") for value in found["values"].split(", ")]
            yield values[0] if len(values) == 1 else f"one of {', '.join(values)}"
        else:
            name = (found["name"] or found["generic"]).rpartition(".")[2]
            if name == Method.__name__:
                yield f"one of {', '.join(known_methods())}, or the class path of your own method"
            elif name not in TYPES:
                yield f"the class path of a {name}"
            else:
                yield TYPES[name]


def _one_line(message: str) -> str:
    return " ".join(message.split())
