"""Command line of a project's ledger: ``python -m zu_lightning.ledger list projects/demo``."""

import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli

from zu_lightning.evaluation.scores import evaluate, evaluation_batches
from zu_lightning.facts.reading import read_facts
from zu_lightning.ledger import Ledger, RequestEntry, UndoEntry, locked
from zu_lightning.ledger.artifacts import remains
from zu_lightning.ledger.composition import effects
from zu_lightning.ledger.identification import Containment, containment
from zu_lightning.ledger.kept import FACTS
from zu_lightning.ledger.recording import CONFIGURATION
from zu_lightning.ledger.reverting import plan, take_back
from zu_lightning.lm.adapter import read_adapter
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.export import export_adapter, export_model
from zu_lightning.lm.fingerprint import check_base
from zu_lightning.lm.updates import apply_updates, edited, summed_updates
from zu_lightning.runtime.errors import InputError

log = logging.getLogger(__name__)

TRAIN = "train.py"
"""What carries out requests, in the checkout."""


def show(project: str) -> None:
    """Show the requests of a project, and check that its ledger is as it was written.

    Args:
        project: The project folder.
    """
    ledger = Ledger.existing(project)
    active = {entry.number for entry in ledger.active}
    for entry in ledger.entries:
        if isinstance(entry, RequestEntry):
            texts = "" if ledger.facts_of(entry.number) else ", texts not kept"
            again = "" if entry.replaces is None else f", solves request {entry.replaces} again"
            state = "in the model" if entry.number in active else "taken back"
            log.info(
                "%4d  %s  request: %d facts%s%s, %s; %s", entry.number, entry.time, len(entry.facts), texts, again,
                state, _scores(entry.scores.get("after", {})),
            )  # fmt: skip
            for number, scores in entry.earlier.items():
                log.info("        facts of request %s: %s", number, _scores(scores))
        else:
            again = f"; solved again: {list(entry.again)}" if entry.again else ""
            log.info("%4d  %s  request %d taken back%s", entry.number, entry.time, entry.undone, again)
    if ledger.waiting:
        log.info("requests %s wait to be solved again: run `undo` again", ledger.waiting)
    log.info("the last line has the hash %s: kept elsewhere, it shows whether lines were removed", ledger.head)


def verify(project: str, model: str, base: str | None = None, head: str | None = None) -> None:
    """Check a ledger, its files, and which of its requests a model contains; the exit status is 1 if anything is wrong.

    Args:
        project: The project folder.
        model: Directory of the model, such as ``model`` in a run's folder.
        base: The base model, by default the one that the ledger names.
        head: Hash of a line that the ledger must have, noted earlier.
    """
    ledger = Ledger.existing(project)
    if head is not None and head not in ledger.hashes:
        raise InputError("head", head, "no line of the ledger has this hash: lines were removed, or all written anew.")
    log.info("the ledger's %d lines are as they were written", len(ledger.entries))
    lm = EditableLM.from_pretrained(model)
    found = containment(ledger, lm, _base(ledger, base))
    expected = [entry.number for entry in ledger.active]
    log.info("%s contains requests %s; the ledger has %s", model, found.contained, expected)
    for number in found.partly:
        log.info("request %d is in it with %.0f%% of its update", number, 100 * found.shares[number])
    log.info("%.2g%% of its difference from the base model is explained by no request", 100 * found.unexplained)
    exact = (
        f"to the last bit those after line {found.line}" if found.line else "not to the last bit those after any line"
    )
    log.info("the edited weights are %s%s", exact, ", but other weights differ" if found.others_differ else "")
    if not _is_right(found, expected):
        sys.exit(1)


def undo(project: str, number: int) -> None:
    """Take a request back; later ones that depend on it are solved again.

    Args:
        project: The project folder.
        number: Of the request.
    """
    with locked(project):
        ledger = Ledger.existing(project)
        done = any(isinstance(entry, UndoEntry) and entry.undone == number for entry in ledger.entries)
        if not (done and ledger.waiting):
            todo = plan(ledger, number)
            for later, share in todo.dependence.items():
                what = "it depends, and is solved again" if later in todo.again else "it does not depend, and stays"
                log.info("request %d: request %d adds %.2g%% of its own effect: %s", later, number, 100 * share, what)
            _check_train_py(number, todo.again)
            ledger = take_back(ledger, todo, _base(ledger))
            log.info("request %d is taken back", number)
    _check_train_py(number, ledger.waiting)
    runs = Path(project) / "runs"
    if ledger.waiting:
        runs.mkdir(mode=0o700, exist_ok=True)  # reports quote what was forgotten
    for again in ledger.waiting:
        folder = ledger.folder_of(again)
        options = {
            "config": folder / CONFIGURATION,
            "data.project": project,
            "data.forget_path": folder / FACTS,
            "data.replaces": again,
            "trainer.default_root_dir": runs / f"again_{again:04d}",
            "ckpt_path": "last",
        }
        command = [sys.executable, TRAIN, "fit", *(f"--{name}={value}" for name, value in options.items())]
        if subprocess.run(command, check=False).returncode:
            remedy = "mend what train.py says, and run `undo` again, or take this request back, too"
            sys.exit(f"request {again} is not solved again yet: {remedy}.")
    _ask_again(Ledger.existing(project), number)


def merge(project: str, into: str, requests: list[int] | None = None) -> None:
    """Write the model with some requests, and the adapter that makes it of the base model.

    Args:
        project: The project folder.
        into: Folder for ``model/`` and ``adapter/``.
        requests: Their numbers; by default all that were not taken back.
    """
    ledger = Ledger.existing(project)
    entries = ledger.active if requests is None else [ledger.request(number) for number in requests]
    chosen, lm = [ledger.earlier(entry).updates for entry in entries], _base(ledger)
    apply_updates(lm, chosen)
    adapter = export_adapter(lm, summed_updates(chosen), Path(into) / "adapter")
    model = export_model(lm, Path(into) / "model")
    log.info("requests %s: %s and %s", [entry.number for entry in entries], model, adapter)


def compose(base: str, into: str, adapters: tuple[str, ...] = (), facts: tuple[str, ...] = ()) -> None:
    """Add up adapters that were made without knowledge of each other, and check what the sum does to each one's facts.

    The exit status is 1 if the sum answers more of what an adapter took away than that adapter alone.

    Args:
        base: The model that all of them are for.
        into: Folder for ``model/`` and ``adapter/``.
        adapters: Their folders.
        facts: For each of them the file with the facts that it took away.
    """
    if len(adapters) < 2 or len(adapters) != len(facts):
        raise InputError("facts", facts, f"name one file of facts for each of {len(adapters)} adapters, at least two.")
    lm = EditableLM.from_pretrained(base)
    updates = [read_adapter(lm, folder) for folder in adapters]
    found = effects(lm, updates, [read_facts(path) for path in facts])
    for folder, one in zip(adapters, found, strict=True):
        log.info("facts of %s%s", folder, ": MORE IS ANSWERED TOGETHER THAN ALONE" if one.is_worse else "")
        for name, scores in vars(one).items():
            log.info("    %-9s %s", name, _scores(scores))
    total = summed_updates(updates)
    with edited(lm, total):
        adapter = export_adapter(lm, total, Path(into) / "adapter")
        log.info("together: %s and %s", export_model(lm, Path(into) / "model"), adapter)
    if any(one.is_worse for one in found):
        sys.exit(1)


def clean(
    project: str, folders: list[str] | None = None, facts: str | None = None, keep_texts: bool = False,
    delete: bool = False,
) -> None:  # fmt: skip
    """List every file that still holds forgotten texts, unedited weights, or hidden states; delete those that can go.

    Args:
        project: The project folder.
        folders: More folders to look in, such as those of runs.
        facts: File with forgotten facts whose texts the project did not keep.
        keep_texts: Whether the texts stay by which requests are asked again and solved again.
        delete: Whether to delete what can go; without it, nothing is changed.
    """
    ledger, places = Ledger.existing(project), [Path(one) for one in (project, *(folders or []))]
    given = [] if facts is None else read_facts(facts)
    with locked(project):
        for one in list(remains(ledger, places, given)):
            kept = "asking and solving requests again" if keep_texts and one.path.name == FACTS else one.needed
            goes = delete and not kept
            state = f"needed for {kept}" if kept else "deleted" if goes else "can go"
            log.info("%s: %s; %s", one.path, ", ".join(dict.fromkeys(one.holds)), state)
            if goes:
                one.path.unlink()
    base = {entry.model for entry in ledger.entries if isinstance(entry, RequestEntry)}
    log.info("not looked at: the base model %s, backups, hubs, servers, and logs elsewhere", ", ".join(sorted(base)))


def _check_train_py(number: int, again: Sequence[int]) -> None:
    if again and not Path(TRAIN).is_file():
        remedy = f"requests {again} are to be solved again by {TRAIN}, which is not here: run this in the checkout."
        raise InputError("number", number, remedy)


def _base(ledger: Ledger, given: str | None = None) -> EditableLM:
    """The base model of a project, in the precision in which its last request was solved.

    Raises:
        InputError: It has other weights than when the ledger began.
    """
    last = [entry for entry in ledger.entries if isinstance(entry, RequestEntry)][-1]
    options = dict(last.loading) if given is None else {"dtype": last.loading.get("dtype", "auto")}
    lm = EditableLM.from_pretrained(given or last.model, **options)
    check_base(lm, ledger.base, "base")
    return lm


def _is_right(found: Containment, expected: Sequence[int]) -> bool:
    return found.contained == expected and not found.partly and not found.others_differ and found.unexplained < 0.01


def _ask_again(ledger: Ledger, undone: int) -> None:
    """Say what the model answers now of the facts of every request."""
    lm = _base(ledger)
    apply_updates(lm, [ledger.earlier(entry).updates for entry in ledger.active])
    for number in (undone, *(entry.number for entry in ledger.active)):
        facts = ledger.facts_of(number)
        if facts:
            scores = evaluate(lm, evaluation_batches(lm, facts, [], []))
            log.info("facts of request %d%s: %s", number, ", taken back" if number == undone else "", _scores(scores))


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {scores[name]:.1f}" for name in ("efficacy", "generalization") if name in scores)


COMMANDS: dict[str, Any] = {
    "list": show,
    "verify": verify,
    "undo": undo,
    "merge": merge,
    "compose": compose,
    "clean": clean,
}


def main(args: list[str] | None = None) -> None:
    """Run a command."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    try:
        auto_cli(COMMANDS, args=args, prog="python -m zu_lightning.ledger")
    except InputError as error:
        sys.exit(f"zu_lightning.ledger: error: {error}")


if __name__ == "__main__":
    main()
