"""Ask a server whether the edit of a run is active.

python -m zu_lightning.serving --run outputs/demo/lightning_logs/version_0 --url http://127.0.0.1:8000/v1 --model edited

The exit status is 0 only if it is.
"""

import inspect
import logging
import os
import sys
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, auto_cli, get_loader
from lightning import LightningDataModule

from zu_lightning.editing.request import Request
from zu_lightning.report.results import Results
from zu_lightning.runtime.errors import InputError, require_positive
from zu_lightning.serving.endpoint import Endpoint
from zu_lightning.serving.verify import Verdict, ask, questions_of, verdict

log = logging.getLogger(__name__)

SENTENCES: dict[Verdict, str] = {
    "active": "The edit is active: %r answers like the edited model.",
    "not active": "The edit is NOT active: %r answers like the unedited model. Either this is the base's name, or the "
    "server has loaded the adapter and applies it to nothing: see docs/how-to/serving.md.",
    "unclear": "It is unclear whether the edit is active: the answers of %r fit neither model, or these are too much "
    "alike. Another base, a weaker scale of the adapter, and coarse quantization look like this.",
}
"""What is told, with the model's name."""


def check(
    run: Path, url: str, model: str, facts: int = 100, tolerance: float = 10.0, timeout: float = 60.0,
    api_key_variable: str | None = None,
) -> Verdict:  # fmt: skip
    """Ask a server whether the edit of a run is active; the exit status is 0 only if it is.

    Args:
        run: Folder of the run, with metrics.json and config.yaml.
        url: Where the API begins, such as http://127.0.0.1:8000/v1.
        model: What the server calls the model.
        facts: Maximum number of facts to forget, and of facts to keep, that are asked about.
        tolerance: By how many percent of the questions the answers may differ from what was measured.
        timeout: Seconds to wait for an answer.
        api_key_variable: Environment variable that holds the server's key, if it wants one.

    Returns:
        What the answers show.

    Raises:
        InputError: An option is wrong, the run cannot be read, or no such model is served.
    """
    require_positive("facts", facts)
    require_positive("tolerance", tolerance, or_zero=True)
    require_positive("timeout", timeout)
    key = os.environ.get(api_key_variable) if api_key_variable is not None else None
    if api_key_variable is not None and not key:
        raise InputError("api_key_variable", api_key_variable, "there is no such environment variable: set it.")
    endpoint = Endpoint(url, model, key, timeout)
    endpoint.models()  # is there a server at all? Reading the data may take long
    request = request_of(run)
    answers = list(ask(endpoint, questions_of(run, request.forget, request.retain, facts)))
    log.info("%-12s %6s %8s %8s %8s", "questions", "asked", "before", "after", "served")
    for one in answers:
        log.info("%-12s %6d %7.1f%% %7.1f%% %7.1f%%", one.kind, one.asked, one.before, one.after, one.served)
    found = verdict(answers, tolerance)
    log.info(SENTENCES[found], model)
    return found


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
    try:
        data.setup("validate")
    except InputError as error:
        remedy = f"its data cannot be read ({error}): call this where the run was started."
        raise InputError("run", str(run), remedy) from error
    request: Request = data.request
    return request


def main(args: list[str] | None = None) -> None:
    """Run the command."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        found = auto_cli(check, args=args, as_positional=False, prog="python -m zu_lightning.serving")
    except InputError as error:
        is_option = error.parameter in inspect.signature(check).parameters and not error.where
        sys.exit(f"zu_lightning.serving: error: {error.message('--' * is_option + error.parameter)}")
    sys.exit(0 if found == "active" else 1)


if __name__ == "__main__":
    main()
