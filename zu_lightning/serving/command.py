"""Check whether a server serves the edited model of a run.

python train.py serving --run outputs/demo/lightning_logs/version_0 --url http://127.0.0.1:8000/v1 --model edited

The exit status is 0 only if it does.
"""

import inspect
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser, auto_cli, get_loader
from lightning import LightningDataModule

from zu_lightning.editing.method import Method
from zu_lightning.editing.request import Request
from zu_lightning.renamed_options import translate_config
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
"""Messages, with the model's name."""


def check(
    run: Path, url: str, model: str, facts: int = 100, tolerance: float = 10.0, timeout: float = 60.0,
    api_key_variable: str | None = None,
) -> Verdict:  # fmt: skip
    """Check whether a server answers like the edited model of a run; the exit status is 0 only if it does.

    Args:
        run: Folder of the run, with metrics.json and config.yaml.
        url: Base URL of the API, such as http://127.0.0.1:8000/v1.
        model: Name of the model on the server.
        facts: Maximum number of facts from the forget set, and from the retain set, whose prompts are sent.
        tolerance: Maximum difference from the scores of the run, in percentage points.
        timeout: Seconds to wait for an answer.
        api_key_variable: Environment variable with the server's key, if it needs one.

    Returns:
        Whether the edit is active.

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
    endpoint.models()  # fails early if there is no server: reading the data may take long
    request = request_of(run)
    answers = list(ask(endpoint, questions_of(run, request.forget, request.retain, facts)))
    log.info("%-12s %6s %8s %8s %8s", "questions", "asked", "before", "after", "served")
    for one in answers:
        log.info("%-12s %6d %7.1f%% %7.1f%% %7.1f%%", one.kind, one.asked, one.before, one.after, one.served)
    found = verdict(answers, tolerance)
    log.info(SENTENCES[found], model)
    return found


def request_of(run: Path) -> Request:
    """The request of a run, from the data that its configuration names.

    Relative paths are resolved in the current folder: call this where the run was started.

    Raises:
        InputError: The configuration, the results, or the data cannot be read.
    """
    parser, names = ArgumentParser(exit_on_error=False), {"data": LightningDataModule, "method": Method}
    try:
        content = get_loader("yaml")((run / "config.yaml").read_text(encoding="utf-8"))
        config = translate_config(content, quiet=True)
        sections = {"data": config["data"]} | {name: config[name] for name in ("method",) if name in config}
    except Exception as error:  # errors of the file, of the YAML parser, or of other content
        raise InputError("run", str(run), f"it has no config.yaml with a section `data` ({error}).") from error
    if "method" in sections and config.get("release"):  # of a run of the previous release
        sections["method"].setdefault("init_args", {})["release"] = config["release"]
    for name in sections:
        parser.add_subclass_arguments(names[name], name)
    try:
        parsed = parser.instantiate(parser.parse_object(sections))
    except ArgumentError as error:
        raise InputError("run", str(run), f"the section `data` of its config.yaml cannot be read: {error}") from error
    data = parsed.data
    data.method = parsed.get("method", data.method)
    results = Results.read(run)
    data.forgotten = results.forgotten
    if getattr(data, "known", False):  # which facts these are takes the model to know
        data.known, data.forget_ids, data.retain_ids = False, results.forgotten, results.retained
    try:
        data.setup("validate")
    except InputError as error:
        remedy = f"its data cannot be read ({error}): call this where the run was started."
        raise InputError("run", str(run), remedy) from error
    request: Request = data.request
    return request


def main(arguments: Sequence[str], parser_class: type[ArgumentParser] = ArgumentParser) -> None:
    """Run the command, and exit with 0 only if the edit is active.

    Args:
        arguments: The options.
        parser_class: Parser that reports wrong arguments.

    Raises:
        InputError: An option is wrong, the run cannot be read, or no such model is served.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        prog = "python train.py serving"
        found = auto_cli(check, args=list(arguments), as_positional=False, prog=prog, parser_class=parser_class)
    except InputError as error:
        if error.parameter in inspect.signature(check).parameters and not error.where:
            raise InputError(f"--{error.parameter}", error.value, error.remedy) from error
        raise
    sys.exit(0 if found == "active" else 1)
