"""Ask a server whether the edit of a run is active.

python -m zu_lightning.serving --run outputs/demo/lightning_logs/version_0 --url http://127.0.0.1:8000/v1 --model edited

The exit status is 0 only if it is.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, get_loader
from lightning import LightningDataModule

from zu_lightning.errors import InputError, require_positive
from zu_lightning.facts.request import Request
from zu_lightning.report.results import Results
from zu_lightning.serving.endpoint import Endpoint
from zu_lightning.serving.verify import Answers, Verdict, ask, questions_of, verdict

log = logging.getLogger(__name__)

SENTENCES: dict[Verdict, str] = {
    "active": "The edit is active: %r answers like the edited model.",
    "not active": "The edit is NOT active: %r answers like the unedited model. Either this is the base's name, or the "
    "server has loaded the adapter and applies it to nothing: see docs/how-to/serving.md.",
    "unclear": "It is unclear whether the edit is active: the answers of %r fit neither model, or these are too much "
    "alike. Another base, a weaker scale of the adapter, and coarse quantization look like this.",
}
"""What is told, with the model's name."""


def main(arguments: list[str] | None = None) -> None:
    """Ask, tell, and exit."""
    given = options().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        found, answers = check(given)
    except InputError as error:
        is_option = error.parameter in vars(given) and not error.where
        name = f"--{error.parameter.replace('_', '-')}" if is_option else error.parameter
        sys.exit(f"zu_lightning.serving: error: {error.message(name)}")
    log.info("%-12s %6s %8s %8s %8s", "questions", "asked", "before", "after", "served")
    for one in answers:
        log.info("%-12s %6d %7.1f%% %7.1f%% %7.1f%%", one.kind, one.asked, one.before, one.after, one.served)
    log.info(SENTENCES[found], given.model)
    sys.exit(0 if found == "active" else 1)


def check(given: argparse.Namespace) -> tuple[Verdict, list[Answers]]:
    """Whether the edit is active, and what the server answers.

    Raises:
        InputError: An option is wrong, the run cannot be read, or no such model is served.
    """
    for name in ("facts", "tolerance", "timeout"):
        require_positive(name, getattr(given, name), or_zero=name == "tolerance")
    key = None
    if given.api_key_variable is not None:
        key = os.environ.get(given.api_key_variable)
        if not key:
            raise InputError(
                "api_key_variable", given.api_key_variable, "there is no such environment variable: set it."
            )
    endpoint = Endpoint(given.url, given.model, key, given.timeout)
    endpoint.models()  # is there a server at all? Reading the data may take long
    request = request_of(given.run)
    questions = questions_of(given.run, request.forget, request.retain, given.facts)
    answers = list(ask(endpoint, questions))
    return verdict(answers, given.tolerance), answers


def request_of(run: Path) -> Request:
    """What a run was to forget and to keep, from the data that its configuration names.

    Relative paths in it are those of the run: to be called in the folder where the run was started.

    Raises:
        InputError: The configuration, the results, or the data cannot be read.
    """
    file = run / "config.yaml"
    try:
        section = get_loader("yaml")(file.read_text(encoding="utf-8"))["data"]
    except Exception as error:  # besides what files raise, what YAML's parser does
        raise InputError("run", str(run), f"it has no config.yaml with a section `data` ({error}).") from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    try:
        data = parser.instantiate(parser.parse_object({"data": section})).data
    except ArgumentError as error:
        raise InputError("run", str(run), f"the section `data` of its config.yaml cannot be read: {error}") from error
    data.forgotten = Results.read(run).forgotten
    data.setup("validate")
    request: Request = data.request
    return request


def options() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        "zu_lightning.serving", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of the run: metrics.json, config.yaml")
    parser.add_argument("--url", required=True, help="where the API begins, such as http://127.0.0.1:8000/v1")
    parser.add_argument("--model", required=True, help="what the server calls the model")
    parser.add_argument("--facts", type=int, default=100, help="maximum number of facts to forget, and to keep (100)")
    parser.add_argument("--tolerance", type=float, default=10.0, help="percent by which answers may differ (10)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer (60)")
    parser.add_argument("--api-key-variable", help="environment variable that holds the server's API key")
    return parser


if __name__ == "__main__":
    main()
