"""Files that are never half written, and digests that tell contents apart."""

import errno
import hashlib
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from zu_lightning import digest, replacing
from zu_lightning.runtime.files import DiskFullError, writing

Content = dict[str, str] | str | None


def write(path: Path, content: Content) -> None:
    """A file, or a folder of files."""
    if isinstance(content, str):
        path.write_text(content)
    elif content is not None:
        path.mkdir()
        for name, text in content.items():
            (path / name).write_text(text)


def read(path: Path) -> Content:
    if path.is_dir():
        return {file.name: file.read_text() for file in path.iterdir()}
    return path.read_text() if path.exists() else None


CONTENTS: dict[str, tuple[Content, Content]] = {
    "file": ("old", "new"),
    "folder": ({"a": "old", "b": "old"}, {"a": "new", "c": "new"}),
    "first file": (None, "new"),
    "first folder": (None, {"a": "new"}),
}


@pytest.mark.parametrize("case", sorted(CONTENTS))
def test_the_new_takes_the_place_of_the_old(case: str, tmp_path: Path) -> None:
    old, new = CONTENTS[case]
    path = tmp_path / "result"
    write(path, old)
    with replacing(path) as temporary:
        assert temporary.parent == path.parent  # on the same disk, so that renaming is enough
        write(temporary, new)
        assert read(path) == old
    assert read(path) == new
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with replacing(tmp_path / "link") as temporary:
        write(temporary, {"a": "new"})
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "elsewhere") == {"a": "new"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("case", sorted(CONTENTS))
def test_an_error_leaves_the_old_and_nothing_else(case: str, error: type[BaseException], tmp_path: Path) -> None:
    old, new = CONTENTS[case]
    path = tmp_path / "result"
    write(path, old)

    def interrupted() -> None:
        with replacing(path) as temporary:
            write(temporary, new)
            raise error("stop")

    with pytest.raises(error, match="stop"):
        interrupted()
    assert read(path) == old
    assert [file.name for file in tmp_path.iterdir()] == (["result"] if old is not None else [])


def test_an_error_before_anything_is_written_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk") as caught, replacing(tmp_path / "result"):
        raise OSError(errno.ENOSPC, "disk full")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


IN_THE_SYSTEMS_WORDS = {
    "file": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the disk is full"),
    "quota": (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk quota is used up"),
    "safetensors": (
        SafetensorError(f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error {errno.ENOSPC})"),
        "the disk is full",
    ),
}


@pytest.mark.parametrize("case", IN_THE_SYSTEMS_WORDS)
def test_a_full_disk_is_told_with_the_file_and_the_remedy(case: str, tmp_path: Path) -> None:
    error, reason = IN_THE_SYSTEMS_WORDS[case]

    def fail() -> None:
        with replacing(tmp_path / "result") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(DiskFullError) as caught:
        fail()
    assert str(caught.value) == f"{tmp_path}/result cannot be written: {reason}. Free some space in {tmp_path}."
    assert caught.value.__cause__ is error
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_device_that_is_full() -> None:
    full = Path("/dev/full")
    with pytest.raises(DiskFullError, match=r"^/dev/full cannot be written: the disk is full\. "), writing(full):
        full.write_text("something")


def test_missing_folders_are_made(tmp_path: Path) -> None:
    with replacing(tmp_path / "runs" / "1" / "metrics.json") as temporary:
        temporary.write_text("{}")
    assert (tmp_path / "runs" / "1" / "metrics.json").read_text() == "{}"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with replacing(path) as first, replacing(path) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # whoever ends last
    assert list(tmp_path.iterdir()) == [path]


def test_a_digest_does_not_depend_on_the_process() -> None:
    assert digest("Ada", b"Bo") == hashlib.sha256(b"3:Ada2:Bo").hexdigest()[:32]


def test_different_parts_have_different_digests() -> None:
    parts: list[tuple[object, ...]] = [
        (), ("",), ("", ""), ("ab",), ("a", "b"), ("b", "a"), ("a1:b",), (1, 2), ((1, 2),), ("\ud800",),
    ]  # fmt: skip
    assert len({digest(*some) for some in parts}) == len(parts)


def test_a_text_and_its_bytes_have_one_digest() -> None:
    assert digest("Zoë".encode()) == digest("Zoë")
