"""What the README says works as written."""

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "outputs" / "forgetful" / "config.json").exists()


def test_ci_runs_the_readmes_test_command() -> None:
    install, _, test = next(block for block in blocks("bash") if "pytest" in block).strip().partition(" && ")
    ci = (ROOT / ".ci" / "run").read_text()
    assert shlex.split(install) in [shlex.split(line) for line in ci.splitlines() if line.startswith("pip")]
    assert test.split()[-1] in ci.splitlines()
    assert "HF_HUB_OFFLINE=1" in ci


def test_every_file_it_names_exists() -> None:
    paths = re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", README) + re.findall(r"configs/\w+\.yaml", README)
    assert len(paths) > 5
    assert not [path for path in paths if not (ROOT / path).exists()]
