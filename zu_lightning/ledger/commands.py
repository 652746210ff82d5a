"""Commands on a project's ledger: ``python train.py ledger list projects/demo``."""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, auto_cli

from zu_lightning.evaluation.scores import evaluate, evaluation_batches
from zu_lightning.facts.reading import read_facts
from zu_lightning.ledger.artifacts import residual_artifacts
from zu_lightning.ledger.chain import locked
from zu_lightning.ledger.composition import adapter_effects
from zu_lightning.ledger.entries import RequestEntry, RevertEntry
from zu_lightning.ledger.files import CONFIGURATION, FACTS
from zu_lightning.ledger.identification import identify
from zu_lightning.ledger.ledger import Ledger
from zu_lightning.ledger.reverting import plan_revert, revert
from zu_lightning.lm.adapter import read_adapter
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.export import export_adapter, export_model
from zu_lightning.lm.fingerprint import check_base
from zu_lightning.lm.updates import apply_updates, edited, summed_updates
from zu_lightning.runtime.errors import InputError

log = logging.getLogger(__name__)

TRAIN = "train.py"
"""The script in the checkout that solves a request again."""


def list_requests(project: str) -> None:
    """List the requests of a project, and check that its ledger is unmodified.

    Args:
        project: The project folder.
    """
    ledger = Ledger.existing(project)
    active = {entry.number for entry in ledger.active}
    for entry in ledger.entries:
        if isinstance(entry, RequestEntry):
            texts = "" if ledger.facts_of(entry.number) else ", texts deleted"
            replaces = "" if entry.replaces is None else f", replaces request {entry.replaces}"
            state = "in the model" if entry.number in active else "reverted"
            log.info(
                "%4d  %s  request: %d facts%s%s, %s; %s", entry.number, entry.time, len(entry.facts), texts, replaces,
                state, _scores(entry.scores.get("after", {})),
            )  # fmt: skip
            for number, scores in entry.previous_scores.items():
                log.info("        facts of request %s: %s", number, _scores(scores))
        else:
            replaced = f"; to be solved again: {list(entry.dependent)}" if entry.dependent else ""
            log.info("%4d  %s  request %d reverted%s", entry.number, entry.time, entry.reverted, replaced)
    if ledger.waiting:
        log.info("requests %s still have to be solved again: run `revert` again", ledger.waiting)
    log.info("hash of the last line: %s (store it elsewhere to detect removed lines)", ledger.head)


def verify(project: str, model: str, base: str | None = None, head: str | None = None) -> None:
    """Check a ledger, its files, and which requests a model contains; the exit status is 1 if they disagree.

    Args:
        project: The project folder.
        model: Directory of the model, such as ``model`` in a run's folder.
        base: The base model, by default the one that the ledger names.
        head: Hash of a line that the ledger must have, kept from an earlier ``list``.
    """
    ledger = Ledger.existing(project)
    if head is not None and head not in ledger.hashes:
        raise InputError("head", head, "no line of the ledger has this hash: lines were removed, or all rewritten.")
    log.info("the ledger's %d lines are unmodified", len(ledger.entries))
    found = identify(ledger, EditableLM.from_pretrained(model), _base(ledger, base))
    expected = [entry.number for entry in ledger.active]
    log.info("%s contains requests %s; the ledger has %s", model, found.contained, expected)
    for number in found.partial:
        log.info("request %d is contained with %.0f%% of its update", number, 100 * found.coefficients[number])
    log.info("%.2g%% of the difference from the base model is explained by no request", 100 * found.unexplained)
    state = f"exactly those after line {found.line}" if found.line else "not exactly those after any line"
    log.info("the edited weights are %s%s", state, ", but other weights differ" if found.others_differ else "")
    if not found.matches(expected):
        sys.exit(1)


def revert_request(project: str, number: int) -> None:
    """Revert a request; later requests that depend on it are solved again.

    Args:
        project: The project folder.
        number: Number of the request.
    """
    with locked(project):
        ledger = Ledger.existing(project)
        done = any(isinstance(entry, RevertEntry) and entry.reverted == number for entry in ledger.entries)
        if not (done and ledger.waiting):
            plan = plan_revert(ledger, number)
            for later, share in plan.dependence.items():
                state = "it depends, and is solved again" if later in plan.dependent else "it is independent, and stays"
                log.info(
                    "request %d: request %d contributes %.2g%% of its effect: %s", later, number, 100 * share, state
                )
            _check_train_py(number, plan.dependent)
            ledger = revert(ledger, plan, _base(ledger))
            log.info("request %d is reverted", number)
    _check_train_py(number, ledger.waiting)
    runs = Path(project) / "runs"
    if ledger.waiting:
        runs.mkdir(mode=0o700, exist_ok=True)  # reports quote the forgotten facts
    for waiting in ledger.waiting:
        folder = ledger.folder_of(waiting)
        options = {
            "config": folder / CONFIGURATION,
            "data.project": project,
            "data.forget_path": folder / FACTS,
            "data.replaces": waiting,
            "trainer.default_root_dir": runs / f"again_{waiting:04d}",
            "ckpt_path": "last",
        }
        command = [sys.executable, TRAIN, "fit", *(f"--{name}={value}" for name, value in options.items())]
        if subprocess.run(command, check=False).returncode:
            remedy = "fix what train.py reports and run `revert` again, or revert this request, too"
            sys.exit(f"request {waiting} could not be solved again: {remedy}.")
    ledger = Ledger.existing(project)
    lm = _base(ledger)
    apply_updates(lm, [ledger.previous(entry).updates for entry in ledger.active])
    for request in (number, *(entry.number for entry in ledger.active)):
        if facts := ledger.facts_of(request):
            scores = _scores(evaluate(lm, evaluation_batches(lm, facts, [], [])))
            log.info("facts of request %d%s: %s", request, ", reverted" if request == number else "", scores)


def merge(project: str, into: str, requests: list[int] | None = None) -> None:
    """Write the model that contains some requests, and the adapter that turns the base model into it.

    Args:
        project: The project folder.
        into: Folder for ``model/`` and ``adapter/``.
        requests: Their numbers; by default all that were not reverted.
    """
    ledger = Ledger.existing(project)
    entries = ledger.active if requests is None else [ledger.request(number) for number in requests]
    updates, lm = [ledger.previous(entry).updates for entry in entries], _base(ledger)
    apply_updates(lm, updates)
    adapter = export_adapter(lm, summed_updates(updates), Path(into) / "adapter")
    model = export_model(lm, Path(into) / "model")
    log.info("requests %s: %s and %s", [entry.number for entry in entries], model, adapter)


def compose(base: str, into: str, adapters: tuple[str, ...] = (), facts: tuple[str, ...] = ()) -> None:
    """Sum adapters that were made independently, and check what the sum does to each adapter's facts.

    The exit status is 1 if the sum answers more of an adapter's facts than that adapter alone.

    Args:
        base: The model that all of them were made for.
        into: Folder for ``model/`` and ``adapter/``.
        adapters: Their folders.
        facts: For each adapter, the file with the facts that it removes.
    """
    if len(adapters) < 2 or len(adapters) != len(facts):
        raise InputError(
            "--facts", facts, f"name one file of facts for each of {len(adapters)} adapters, at least two."
        )
    lm = EditableLM.from_pretrained(base)
    updates = [read_adapter(lm, folder) for folder in adapters]
    effects = adapter_effects(lm, updates, [read_facts(path) for path in facts])
    for folder, effect in zip(adapters, effects, strict=True):
        log.info("facts of %s%s", folder, ": THE SUM ANSWERS MORE THAN THE ADAPTER ALONE" if effect.is_worse else "")
        for name, scores in vars(effect).items():
            log.info("    %-9s %s", name, _scores(scores))
    total = summed_updates(updates)
    with edited(lm, total):
        adapter = export_adapter(lm, total, Path(into) / "adapter")
        log.info("sum: %s and %s", export_model(lm, Path(into) / "model"), adapter)
    if any(effect.is_worse for effect in effects):
        sys.exit(1)


def clean(
    project: str, folders: list[str] | None = None, facts: str | None = None, keep_texts: bool = False,
    delete: bool = False,
) -> None:  # fmt: skip
    """List files that still contain forgotten texts, unedited weights, or hidden states; delete those not needed.

    Args:
        project: The project folder.
        folders: More folders to search, such as those of runs.
        facts: File with forgotten facts whose texts the project does not store.
        keep_texts: Whether to keep the texts with which requests are tested again and solved again.
        delete: Whether to delete the files that are not needed; without it, nothing is changed.
    """
    ledger, places = Ledger.existing(project), [Path(folder) for folder in (project, *(folders or []))]
    with locked(project):
        for artifact in list(residual_artifacts(ledger, places, [] if facts is None else read_facts(facts))):
            is_text = keep_texts and artifact.path.name == FACTS
            needed = "testing and solving requests again" if is_text else artifact.needed
            state = f"needed for {needed}" if needed else "deleted" if delete else "can be deleted"
            log.info("%s: %s; %s", artifact.path, ", ".join(dict.fromkeys(artifact.holds)), state)
            if state == "deleted":
                artifact.path.unlink()
    models = {entry.model for entry in ledger.entries if isinstance(entry, RequestEntry)}
    log.info("not searched: the base model %s, backups, hubs, servers, and logs elsewhere", ", ".join(sorted(models)))


def _check_train_py(number: int, dependent: Sequence[int]) -> None:
    if dependent and not Path(TRAIN).is_file():
        remedy = f"requests {dependent} must be solved again by {TRAIN}, which is not here: run this in the checkout."
        raise InputError("number", number, remedy)


def _base(ledger: Ledger, given: str | None = None) -> EditableLM:
    """Load the base model of a project, in the precision of its last request.

    Raises:
        InputError: Its weights are not those with which the ledger began.
    """
    last = [entry for entry in ledger.entries if isinstance(entry, RequestEntry)][-1]
    options = dict(last.loading) if given is None else {"dtype": last.loading.get("dtype", "auto")}
    lm = EditableLM.from_pretrained(given or last.model, **options)
    check_base(lm, ledger.base, "base")
    return lm


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {scores[name]:.1f}" for name in ("efficacy", "generalization") if name in scores)


COMMANDS: dict[str, Any] = {
    "list": list_requests, "verify": verify, "revert": revert_request, "merge": merge, "compose": compose,
    "clean": clean,
}  # fmt: skip


def main(arguments: Sequence[str], parser_class: type[ArgumentParser] = ArgumentParser) -> None:
    """Run a command.

    Args:
        arguments: Its name and its arguments.
        parser_class: Parser that reports wrong arguments.

    Raises:
        InputError: An argument is wrong, or a file of the project is damaged.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    name, *options = arguments or ["--help"]
    if name == "undo":
        log.warning("`undo` is now `revert`; the old name goes with the next release.")
        name = "revert"
    auto_cli(COMMANDS, args=[name, *options], prog="python train.py ledger", parser_class=parser_class)
