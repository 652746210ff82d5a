"""The ledger of a project: its requests, and the state before the next one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zu_lightning.editing.request import History, PreviousRequest
from zu_lightning.facts.fact import Fact
from zu_lightning.ledger import chain
from zu_lightning.ledger.entries import Entry, RequestEntry, RevertEntry, active, entry_of, line_of, waiting
from zu_lightning.ledger.files import (
    FACTS,
    LEDGER,
    REQUESTS,
    check_files,
    fact_digest,
    read_layers,
    read_salt,
    read_stored_facts,
)
from zu_lightning.runtime.errors import InputError


@dataclass(frozen=True)
class Ledger:
    """The ledger of a project folder, as it was when it was read.

    Attributes:
        folder: The project folder.
        entries: Its entries, in order, numbered by their lines.
        hashes: The hash of each line.
    """

    folder: Path
    entries: Sequence[Entry]
    hashes: Sequence[str]

    @classmethod
    def read(cls, folder: str | Path) -> "Ledger":
        """The ledger in a folder; empty if there is none yet.

        Raises:
            InputError: It was modified, or is missing although there are files of its requests.
        """
        path = Path(folder) / LEDGER
        lines = chain.read_chain(path)
        entries = [entry_of(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]
        _check_lines(path, len(lines))
        return cls(Path(folder), entries, [line["hash"] for line in lines])

    @classmethod
    def existing(cls, folder: str | Path) -> "Ledger":
        """The ledger in a folder that must have one.

        Raises:
            InputError: There is none, or it was modified.
        """
        ledger = cls.read(folder)
        if not ledger.entries:
            raise InputError("project", str(folder), "it contains no ledger: give the folder of `--data.project`.")
        return ledger

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return self.hashes[-1] if self.hashes else chain.START

    @property
    def active(self) -> list[RequestEntry]:
        """The requests whose updates are in the model, in order."""
        return active(self.entries)

    @property
    def waiting(self) -> list[int]:
        """Numbers of the requests that were subtracted and have to be solved again."""
        return waiting(self.entries)

    @property
    def base(self) -> dict[str, str]:
        """Digests of the base model's weights: of each layer before the first request that edited it."""
        found: dict[str, str] = {}
        for entry in self.entries:
            if isinstance(entry, RequestEntry):
                found |= {name: value for name, value in entry.weights["before"].items() if name not in found}
        return found

    def request(self, number: int) -> RequestEntry:
        """A request by its number.

        Raises:
            InputError: There is none with this number.
        """
        for entry in self.entries:
            if isinstance(entry, RequestEntry) and entry.number == number:
                return entry
        numbers = [entry.number for entry in self.active]
        raise InputError("number", number, f"requests {numbers} are in the model: give one of them.")

    def folder_of(self, number: int) -> Path:
        """Where the files of a request are."""
        return self.folder / REQUESTS / f"{number:04d}"

    def facts_of(self, number: int) -> list[Fact]:
        """The facts of a request; none if their texts were not stored."""
        return read_stored_facts(self.folder_of(number) / FACTS)

    def previous(self, entry: RequestEntry) -> PreviousRequest:
        """A request as later ones need it: its updates, keys and values, and facts.

        Raises:
            InputError: A file of it is missing or was modified.
        """
        folder = self.folder_of(entry.number)
        check_files(folder, entry.files)
        return PreviousRequest(entry.number, read_layers(folder, entry.layers), self.facts_of(entry.number))

    def until(self, number: int) -> "Ledger":
        """The ledger as it was before a line."""
        return Ledger(self.folder, self.entries[: number - 1], self.hashes[: number - 1])

    def history(self, *, keeps_texts: bool = True, replaces: int | None = None) -> History:
        """The state before the next request.

        Raises:
            InputError: Requests wait to be solved again, or a file is missing or was modified.
        """
        left = self.waiting
        if replaces is not None and replaces not in left:
            raise InputError("replaces", replaces, f"requests {left} wait to be solved again: leave it out.")
        if left and replaces is None:
            reverted = [one.reverted for one in self.entries if isinstance(one, RevertEntry)][-1]
            command = f"python train.py ledger revert {self.folder} {reverted}"
            remedy = f"requests {left} wait to be solved again: first run `{command}`."
            raise InputError("project", str(self.folder), remedy)
        previous = [self.previous(entry) for entry in self.active]
        return History(self.folder, self.head, self.base, previous, keeps_texts, replaces)

    def digests_of(self, facts: Sequence[Fact]) -> dict[str, str]:
        """Digests of facts with the salt of this project, by their ids."""
        salt = read_salt(self.folder)
        return {fact.id: fact_digest(fact, salt) for fact in facts}

    def forgotten(self, facts: Sequence[Fact]) -> dict[str, int]:
        """Ids of those facts that a request has forgotten, recognized by id or digest, with its number."""
        ids = {name: entry.number for entry in self.active for name in entry.facts}
        digests = {value: entry.number for entry in self.active for value in entry.facts.values()}
        found = {name: digests.get(value, ids.get(name)) for name, value in self.digests_of(facts).items()}
        return {name: number for name, number in found.items() if number is not None}

    def check_new(self, forget: Sequence[Fact]) -> None:
        """Check the facts of a new request.

        Raises:
            InputError: A previous request has forgotten one of them, possibly under another id.
        """
        numbers = {value: entry.number for entry in self.active for value in entry.facts.values()}
        for name, value in self.digests_of(forget).items():
            if value in numbers:
                raise already_forgotten("fact", name, numbers[value])

    def ends_in(self, forget: Sequence[Fact]) -> bool:
        """Whether the last line is a request to forget these facts."""
        last = self.entries[-1] if self.entries else None
        return isinstance(last, RequestEntry) and last.facts == self.digests_of(forget)

    def append(self, entry: Entry) -> "Ledger":
        """Add an entry; the caller holds the lock."""
        line = chain.append(self.folder / LEDGER, line_of(entry), self.head)
        return Ledger(self.folder, [*self.entries, entry], [*self.hashes, line["hash"]])


def already_forgotten(parameter: str, name: str, number: int) -> InputError:
    """The error for a fact that a request has forgotten already."""
    return InputError(parameter, name, f"request {number} of the project has forgotten this fact: ask for others.")


def _check_lines(path: Path, lines: int) -> None:
    """Check that no lines are missing whose requests have files, which would be overwritten.

    A request gets its files before its line, so that those of the next one may exist if its run was killed.

    Raises:
        InputError: Lines are missing.
    """
    numbers = [int(folder.name) for folder in (path.parent / REQUESTS).glob("[0-9]*")]
    lost = [number for number in sorted(numbers) if number > lines + path.exists()]
    if lost:
        state = f"it has {lines} lines" if path.exists() else "it is missing"
        remedy = f"{state}, but there are files of requests {lost}: restore it from a backup."
        raise InputError("ledger", str(path), remedy)
