"""What runs share: tensors in files that are named by all that they depend on."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zu_lightning.runtime.distributed import all_reduce, process, rank_slice, shares
from zu_lightning.runtime.files import digest, replacing

log = logging.getLogger(__name__)

T = TypeVar("T")
Tensors = dict[str, Tensor]

VERSION = 6
"""To be raised when something that is kept is computed in another way, so that older files are not found."""

_MENTIONED: set[Path] = set()
"""Folders that the log has told of."""

TRANSPOSED = ".transposed"
"""Ends the names of matrices that a file holds transposed; see :func:`write_tensors`."""


class Cache:
    """A folder of what was computed with a model; runs and processes may use it at once.

    A file's name holds its kind and a digest of the model's weights, its tokenizer, and everything else that decides
    what is in it; so whatever is found is right, and every file can be deleted at any time.

    Args:
        folder: Where the files are; ``None`` to compute everything and keep nothing.
        device: Where to put what is found.
        model: A digest of the model in its present state (:func:`zu_lightning.lm.fingerprint.open_cache`).
    """

    def __init__(self, folder: Path | None, device: torch.device, model: str = "") -> None:
        self.folder, self.device = folder, device
        # Another kind of device rounds in another way.
        self.state = digest(VERSION, device.type, model)

    def file(self, kind: str, *parts: object) -> Path | None:
        """The file of what is of some kind and depends on ``parts``, as :func:`digest` takes them, and on the model."""
        return self.folder and self.folder / f"{kind}-{digest(self.state, kind, *parts)}.safetensors"

    def partial_file(self, *parts: object) -> Path | None:
        """Where this process keeps what it has of something unfinished."""
        rank, count = process()
        file = self.file("partial", count, *parts)
        return file and file.with_stem(f"{file.stem}-{rank}")

    def find(self, files: Sequence[Path | None]) -> list[Tensors | None]:
        """What the files hold; ``None`` for those that some process does not find, so that all of them agree."""
        if self.folder is None:
            return [None] * len(files)
        return self._found_by_all([None if file is None else read_tensors(file, self.device) for file in files])

    def _found_by_all(self, found: Sequence[T | None]) -> list[T | None]:
        here = torch.tensor([there is not None for there in found], device=self.device).long()
        everywhere = (all_reduce(here)[0] == process()[1]).tolist()
        if any(everywhere) and self.folder and self.folder not in _MENTIONED:
            _MENTIONED.add(self.folder)
            log.info("what runs have computed before is read from %s", self.folder)
        return [there if by_all else None for there, by_all in zip(found, everywhere, strict=True)]

    def keep(self, file: Path | None, tensors: Tensors) -> Tensors:
        """Write tensors, from the first process; returns them as a later run would find them."""
        if file is None:
            return tensors
        packed = pack(tensors)
        if process()[0] == 0:
            write_packed(file, packed)
        return unpack({name: tensor.to(self.device) for name, tensor in packed.items()})

    def holds(self, kind: str, items: Sequence[object], *parts: object) -> bool:
        """Whether :meth:`each` would find all of it, by the names of the files."""
        files = [self.file(kind, *parts, item) for item in items]
        return all(file is not None and file.exists() for file in files)

    def each(
        self, kind: str, items: Sequence[T], compute: Callable[[list[T]], Mapping[T, Tensors]], *parts: object
    ) -> dict[T, Tensors]:
        """What is of some kind for each of several items, such as layers; those that are missing are computed together.

        Args:
            kind: What it is, for the file's name and the log.
            items: What it is wanted for.
            compute: Called with the items that were not found.
            parts: Everything that decides about the result, besides the model and the item.
        """
        files = [self.file(kind, *parts, item) for item in items]
        found = dict(zip(items, self.find(files), strict=True))
        missing = [item for item in items if found[item] is None]
        computed = compute(missing) if missing else {}
        return {
            item: self.keep(file, computed[item]) if (there := found[item]) is None else there
            for item, file in zip(items, files, strict=True)
        }

    def tensors(self, kind: str, compute: Callable[[], Tensors], *parts: object) -> Tensors:
        """What is of some kind and depends on ``parts``: found, or computed and kept."""
        return self.each(kind, [""], lambda _: {"": compute()}, *parts)[""]

    def tensor(self, kind: str, compute: Callable[[], Tensor], *parts: object) -> Tensor:
        """The same for a single tensor."""
        return self.tensors(kind, lambda: {kind: compute()}, *parts)[kind]

    def rows(self, kind: str, compute: Callable[[], Tensor], count: int, *parts: object) -> Tensor:
        """A row for each fact of this process's share: found, or computed and kept.

        The file holds the rows of all facts, whatever the number of processes: each of them reads its share, and the
        first one writes one share after the other, so that none has all of them in memory.

        Args:
            kind: What it is, for the file's name and the log.
            compute: Gives the rows of this process's share.
            count: Number of facts of all processes.
            parts: Everything that decides about the rows, besides the model.
        """
        named = self.file(kind, *parts)
        if named is None:
            return compute().contiguous()
        file = named.with_suffix(".npy")
        (found,) = self._found_by_all([read_rows(file, rank_slice(count), self.device)])
        if found is None:
            found = compute().contiguous()
            everyones = shares(found)
            if process()[0] == 0:
                write_rows(file, everyones, (count, *found.shape[1:]))
            for _ in everyones:  # the other processes send theirs whether or not it can be written
                pass
        return found

    def eigh(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of a symmetric matrix; those of a matrix with the same bits are found again.

        On a GPU nothing is kept: it solves the problem in the time in which a disk is read.
        """
        file = None
        if self.folder is not None and matrix.device.type == "cpu":
            file = self.folder / f"eigenvectors-{digest(VERSION, _bytes(matrix))}.safetensors"
        (found,) = self.find([file])
        if found is None:
            values, vectors = torch.linalg.eigh(matrix)
            found = self.keep(file, {"values": values, "vectors": vectors})
        return found["values"], found["vectors"]


def read_tensors(file: Path, device: torch.device) -> Tensors | None:
    """What was written; ``None`` if nothing was, or nothing that can be read."""
    try:
        return unpack(load_file(file, device=str(device)))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        log.warning("cache: %s cannot be read (%s) and is computed again", file, error)
        return None


def read_rows(file: Path, part: slice, device: torch.device) -> Tensor | None:
    """Some of the rows that were written; ``None`` if none were, or none that can be read."""
    try:
        return torch.tensor(np.load(file, mmap_mode="r")[part], device=device)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("cache: %s cannot be read (%s) and is computed again", file, error)
        return None


def write_rows(file: Path, rows: Iterator[Tensor], shape: tuple[int, ...]) -> None:
    """Write the rows of all facts, float64, share by share, as a file of NumPy; if that fails, a warning says so."""
    header = {"descr": "<f8", "fortran_order": False, "shape": shape}
    try:
        with replacing(file) as temporary, temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for share in rows:
                stream.write(share.double().cpu().numpy().data)
    except OSError as error:
        log.warning("cache: %s cannot be written (%s)", file, error)


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file that a run can do without: if that fails, a warning says so.

    A matrix is read with the strides that it was written with: products round alike only if their factors lie in memory
    alike.
    """
    write_packed(file, pack(tensors))


def write_packed(file: Path, packed: Mapping[str, Tensor]) -> None:
    """Write tensors as a file holds them."""
    try:
        with replacing(file) as temporary:
            save_file(dict(packed), temporary)
    except (OSError, SafetensorError) as error:
        log.warning("cache: %s cannot be written (%s)", file, error)


def pack(tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors in main memory, as a file holds them."""
    packed = {}
    for name, tensor in tensors.items():
        here = tensor.detach().cpu()
        if here.dim() == 2 and not here.is_contiguous() and here.mT.is_contiguous():
            packed[name + TRANSPOSED] = here.mT
        else:
            packed[name] = here.contiguous()
    return packed


def unpack(packed: Mapping[str, Tensor]) -> Tensors:
    """What was packed, in memory of its own: a file's tensors are not aligned as those that torch makes."""
    tensors = {}
    for name, tensor in packed.items():
        if name.endswith(TRANSPOSED):
            tensors[name.removesuffix(TRANSPOSED)] = tensor.clone().mT
        else:
            tensors[name] = tensor.clone()
    return tensors


def _bytes(tensor: Tensor) -> bytes:
    return bytes(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
