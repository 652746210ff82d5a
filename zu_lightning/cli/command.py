"""Run a command: one of Lightning's, or another."""

import logging
import sys
from importlib import import_module

from jsonargparse import set_parsing_settings
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import distributed

from zu_lightning.cli.application import Application
from zu_lightning.cli.logs import close_bars, set_up_logging
from zu_lightning.cli.method_option import MethodChoice
from zu_lightning.cli.stopping import ending, full_disk_told_once, stopped_by_sigterm
from zu_lightning.cli.unlearn_cli import UnlearnCLI
from zu_lightning.cli.usage import CommandParser, Parser, UsageError
from zu_lightning.renamed_options import translate_arguments

log = logging.getLogger(__name__)

LIGHTNING_COMMANDS = {
    "fit": "make a model forget, measure it before and after, and export it",
    "validate": "evaluate a model as it is, or trace its layers",
    "test": "the same as validate",
    "predict": "complete the prompts of the facts",
}
"""Lightning's commands, and what they do here."""
COMMANDS = {
    "compare": "compare methods over models, data sets, and seeds: tables, figures, a report",
    "known": "list the facts that a model answers, with their probabilities",
    "ledger": "list, verify, revert, merge, or compose the requests of a project folder",
    "serving": "check whether a server answers like the edited model",
}
"""The other commands, and what they do."""
LISTED = "\n".join(f"  {name:<20}{meaning}" for name, meaning in (LIGHTNING_COMMANDS | COMMANDS).items())
DESCRIPTION = f"""Make a language model forget, exactly and measurably.

commands, each with a --help of its own:
{LISTED}

options of fit: --method CLASS (Erase, Memit, ZeroUnlearnGD, NPO, ...), --method.help CLASS, --model.*, --data.*"""


def main(application: Application, args: list[str] | None) -> None:
    """Run a command, and end the process with one line if it is stopped.

    Args:
        application: Default callbacks and data.
        args: The words after ``train.py``; those of this process by default.
    """
    # The help of options that are fields of a dataclass stands below the fields; looking for it takes seconds.
    asks_for_help = any("help" in word for word in args or sys.argv)
    set_parsing_settings(docstring_parse_attribute_docstrings=asks_for_help)
    set_up_logging()
    words = translate_arguments(sys.argv[1:] if args is None else args)
    if args is None:
        sys.argv[1:] = words
    command = words[0] if words else ""
    Parser.method = MethodChoice.of(words)
    try:
        with stopped_by_sigterm(), full_disk_told_once():
            if command in LIGHTNING_COMMANDS or command.startswith("-"):
                UnlearnCLI(application, DESCRIPTION, None if args is None else words)
            else:
                run_other_command(command, words[1:], application)
    except BaseException as error:
        end = ending(error, str if command in COMMANDS else application.option_of, words)
        if end is None:
            raise
        close_bars()
        if end.code == 1:
            sys.exit(f"train.py: {end.line}")
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            log.error("train.py: %s", end.line)
        sys.exit(end.code)
    if distributed.is_initialized():
        # Left to the interpreter's exit, gloo's threads now and then abort a process that is done.
        distributed.barrier()
        distributed.destroy_process_group()


def run_other_command(name: str, arguments: list[str], application: Application) -> None:
    """Run a command that is not one of Lightning's.

    Raises:
        UsageError: There is no such command, or an argument is wrong.
    """
    if name == "compare":
        module, function = application.entry
        import_module("zu_lightning.comparison.command").main(arguments, getattr(import_module(module), function))
    elif name == "known":
        import_module("zu_lightning.cli.known").main(arguments, CommandParser)
    elif name in COMMANDS:
        import_module(f"zu_lightning.{name}").main(arguments, CommandParser)
    else:
        wrong = f"there is no command {name!r}" if name else "a command is missing"
        raise UsageError(f"{wrong}: give one of {', '.join(LIGHTNING_COMMANDS | COMMANDS)}.")
