"""A chain of lines is read as it was written, whenever its writer is killed, and not once it was changed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from zu_lightning import InputError
from zu_lightning.ledger.chain import START, append, locked, read_chain

LINES = 4

WRITER = """
import sys, types
for name in ("zu_lightning", "zu_lightning.ledger"):  # without their __init__, which would load torch
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [sys.argv[2] + "/" + name.replace(".", "/")]
from pathlib import Path
from zu_lightning.ledger.chain import START, append, locked, read_chain
path = Path(sys.argv[1])
with locked(path.parent):
    lines = read_chain(path)
    while True:
        last = lines[-1]["hash"] if lines else START
        lines = [append(path, {"number": len(read_chain(path)) + 1}, last)]
        print(lines[-1]["number"], flush=True)
"""
"""Adds lines until it is killed, and tells of each that is on the disk."""


def start_writer(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(ROOT)], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file, last = tmp_path / "ledger.jsonl", START
    for number in range(LINES):
        last = append(file, {"number": number, "text": "ü\n"}, last)["hash"]
    return file


def test_lines_are_read_as_they_were_written(path: Path) -> None:
    lines = read_chain(path)
    assert [line["number"] for line in lines] == list(range(LINES))
    assert {line["text"] for line in lines} == {"ü\n"}
    assert [line["previous"] for line in lines] == [START, *(line["hash"] for line in lines[:-1])]


def test_wherever_the_file_is_cut_whole_lines_count_and_the_next_one_follows_them(path: Path) -> None:
    content, lines = path.read_bytes(), read_chain(path)
    for cut in range(0, len(content), 11):
        path.write_bytes(content[:cut])
        whole = content[:cut].count(b"\n")
        assert read_chain(path) == lines[:whole]
        append(path, {"number": whole}, lines[whole - 1]["hash"] if whole else START)
        assert [line["number"] for line in read_chain(path)] == list(range(whole + 1))


@pytest.mark.parametrize("change", ["change", "remove", "swap", "rewrite"])
def test_a_file_that_was_changed_is_refused_by_its_line(change: str, path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    if change == "change":
        lines[1] = lines[1].replace('"number":1', '"number":7')
    elif change == "remove":
        del lines[1]
    elif change == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines[1] = json.dumps({"number": 1}) + "\n"
    path.write_text("".join(lines))
    with pytest.raises(InputError, match="line 2: ledger is 'damaged'"):
        read_chain(path)
    with pytest.raises(InputError):
        append(path, {}, START)


def test_a_line_follows_the_one_that_its_writer_has_seen(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="another process has written to it"):
        append(path, {"number": 9}, read_chain(path)[1]["hash"])
    assert path.read_bytes() == before


def test_a_second_writer_is_refused_or_waits_until_the_first_one_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    writer = start_writer(path)
    assert writer.stdout is not None
    writer.stdout.readline()
    with pytest.raises(InputError, match="another process is using it"), locked(path.parent):
        pytest.fail("two writers")
    writer.kill()
    with locked(path.parent, wait=5):
        lines = read_chain(path)
        append(path, {"number": len(lines) + 1}, lines[-1]["hash"])
    writer.communicate()


def test_a_writer_that_is_killed_at_random_moments_loses_no_line_that_it_has_told_of(tmp_path: Path) -> None:
    path, moments = tmp_path / "ledger.jsonl", random.Random(0)
    for _ in range(12):
        writer = start_writer(path)
        assert writer.stdout is not None
        told = [writer.stdout.readline()]
        time.sleep(moments.uniform(0, 0.03))
        os.kill(writer.pid, signal.SIGKILL)
        told += writer.communicate()[0].splitlines()
        lines = read_chain(path)
        assert [line["number"] for line in lines] == list(range(1, len(lines) + 1))
        assert len(lines) in (int(told[-1]), int(told[-1]) + 1)
    assert len(read_chain(path)) > 12
