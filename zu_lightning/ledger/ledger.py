"""The ledger of a project: which requests its model has been given, and what is known of each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zu_lightning.editing.request import History, PreviousRequest
from zu_lightning.facts.fact import Fact
from zu_lightning.ledger import chain
from zu_lightning.ledger.entries import Entry, RequestEntry, UndoEntry, active, entry_of, line_of, waiting
from zu_lightning.ledger.kept import (
    FACTS,
    LEDGER,
    REQUESTS,
    check_files,
    fact_digest,
    read_facts_kept,
    read_layers,
    read_salt,
)
from zu_lightning.runtime.errors import InputError


@dataclass(frozen=True)
class Ledger:
    """The ledger of a project folder as it was when it was read.

    Attributes:
        folder: The project folder.
        entries: What its lines say, in order; their numbers are those of the lines.
        hashes: The hash of each line.
    """

    folder: Path
    entries: Sequence[Entry]
    hashes: Sequence[str]

    @classmethod
    def read(cls, folder: str | Path) -> "Ledger":
        """The ledger in a folder; empty if there is none yet.

        Raises:
            InputError: It was changed since it was written, or is gone while files of its requests are there.
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
            InputError: There is none, or it was changed since it was written.
        """
        ledger = cls.read(folder)
        if not ledger.entries:
            raise InputError("project", str(folder), "it holds no ledger: name the folder of `--data.project`.")
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
        """Requests that were subtracted and have to be solved again."""
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
        found = [one for one in self.entries if isinstance(one, RequestEntry) and one.number == number]
        if not found:
            known = [one.number for one in self.active]
            raise InputError("number", number, f"requests {known} are in the model: name one of them.")
        return found[0]

    def folder_of(self, number: int) -> Path:
        """Where the files of a request are."""
        return self.folder / REQUESTS / f"{number:04d}"

    def facts_of(self, number: int) -> list[Fact]:
        """The facts of a request; none if their texts were not kept."""
        return read_facts_kept(self.folder_of(number) / FACTS)

    def earlier(self, entry: RequestEntry) -> PreviousRequest:
        """What a request did, as later ones need it.

        Raises:
            InputError: A file of it is missing, or is not as it was written.
        """
        folder = self.folder_of(entry.number)
        check_files(folder, entry.files)
        return PreviousRequest(entry.number, read_layers(folder, entry.layers), self.facts_of(entry.number))

    def until(self, number: int) -> "Ledger":
        """The ledger as it was before a line."""
        return Ledger(self.folder, self.entries[: number - 1], self.hashes[: number - 1])

    def history(self, *, keeps_texts: bool = True, replaces: int | None = None) -> History:
        """What the next request has to know.

        Raises:
            InputError: Requests wait to be solved again, or a file is not as it was written.
        """
        left = self.waiting
        if replaces is not None and replaces not in left:
            raise InputError("replaces", replaces, f"requests {left} wait to be solved again: leave it out.")
        if left and replaces is None:
            undone = [one.undone for one in self.entries if isinstance(one, UndoEntry)][-1]
            command = f"python -m zu_lightning.ledger undo {self.folder} {undone}"
            remedy = f"requests {left} wait to be solved again: first run `{command}`."
            raise InputError("project", str(self.folder), remedy)
        earlier = [self.earlier(entry) for entry in self.active]
        return History(self.folder, self.head, self.base, earlier, keeps_texts, replaces)

    def digests_of(self, facts: Sequence[Fact]) -> dict[str, str]:
        """Digests of facts by their ids, as the ledger of this project has them."""
        salt = read_salt(self.folder)
        return {fact.id: fact_digest(fact, salt) for fact in facts}

    def forgotten(self, facts: Sequence[Fact]) -> dict[str, int]:
        """Which of some facts are forgotten, by their ids or digests: their ids, with the numbers of the requests."""
        ids = {name: entry.number for entry in self.active for name in entry.facts}
        digests = {value: entry.number for entry in self.active for value in entry.facts.values()}
        found = {name: digests.get(value, ids.get(name)) for name, value in self.digests_of(facts).items()}
        return {name: number for name, number in found.items() if number is not None}

    def check_new(self, forget: Sequence[Fact]) -> None:
        """Refuse facts of a request's own that an earlier request has forgotten, whatever its ids for them.

        Raises:
            InputError: See above.
        """
        numbers = {value: entry.number for entry in self.active for value in entry.facts.values()}
        for name, value in self.digests_of(forget).items():
            if value in numbers:
                raise known_already("fact", name, numbers[value])

    def ends_in(self, forget: Sequence[Fact]) -> bool:
        """Whether the last line is a request to forget these facts."""
        last = self.entries[-1] if self.entries else None
        return isinstance(last, RequestEntry) and last.facts == self.digests_of(forget)

    def append(self, entry: Entry) -> "Ledger":
        """Add an entry; the caller holds the lock."""
        line = chain.append(self.folder / LEDGER, line_of(entry), self.head)
        return Ledger(self.folder, [*self.entries, entry], [*self.hashes, line["hash"]])


def known_already(parameter: str, name: str, number: int) -> InputError:
    """What is said of a fact, by its id, that a request has forgotten."""
    return InputError(parameter, name, f"request {number} of the project has forgotten this fact: ask for others.")


def _check_lines(path: Path, lines: int) -> None:
    """Refuse a ledger without lines of requests whose files are there: they would be overwritten.

    A request gets its files first, so that those of the next one may be there if its run was killed.

    Raises:
        InputError: See above.
    """
    numbers = [int(one.name) for one in (path.parent / REQUESTS).glob("[0-9]*")]
    lost = [number for number in sorted(numbers) if number > lines + path.exists()]
    if lost:
        what = f"it has {lines} lines" if path.exists() else "it is gone"
        remedy = f"{what}, but there are files of requests {lost}: restore it from a backup."
        raise InputError("ledger", str(path), remedy)


@contextmanager
def locked(folder: str | Path, wait: float = 0.0) -> Iterator[None]:
    """Within this context nobody else can write into a project; see :func:`zu_lightning.ledger.chain.locked`."""
    with chain.locked(Path(folder) / "ledger.lock", wait):
        yield
