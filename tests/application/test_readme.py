"""What the README and the documentation say works as written."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, command_line, train_py
from zu_lightning.cli.command import COMMANDS

README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    """The blocks of code of one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[tuple[str, ...]]:
    """Arguments of every ``train.py`` in a block of shell commands that has options beyond ``--config``."""
    shell = "\n".join(block for page in PAGES for block in blocks(page.read_text(), "bash"))
    lines = re.findall(r"train\.py (?!\{)(.*)", shell.replace("\\\n", " "))
    found = dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in lines)
    options = ("--model", "--data", "--trainer", "--method", "--attacks")
    return [words for words in found if words[0] not in COMMANDS and any(w.startswith(options) for w in words)]


def options_in(config: dict[str, Any], prefix: str = "-") -> Iterator[str]:
    """The names of all options of a printed configuration, as they are given on the command line."""
    for name, value in config.items():
        inside = (
            prefix if name in ("init_args", "dict_kwargs") else f"{prefix}.{name}" if prefix != "-" else f"--{name}"
        )
        yield inside
        for part in value if isinstance(value, list) else [value]:  # an option of a list is one of its last item
            if isinstance(part, dict):
                yield from options_in(part, inside)


def test_the_library_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks(README, "python")
    exec(compile(example, "README.md", "exec"), {})
    assert (tmp_path / "outputs" / "forgetful" / "config.json").exists()


def test_ci_runs_the_command_that_the_readme_gives_for_tests() -> None:
    given = next(block for block in blocks(README, "bash") if "pytest" in block).strip()
    install, _, test = given.partition(" && ")
    ci = (ROOT / ".ci" / "run").read_text()
    assert shlex.split(install) in [shlex.split(line) for line in ci.splitlines() if line.startswith("pip")]
    assert test.split()[-1] in ci.splitlines()
    assert "HF_HUB_OFFLINE=1" in ci


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_configuration_that_is_named_exists(page: Path) -> None:
    paths = re.findall(r"(?<![\w/])configs/[\w/]+\.yaml", page.read_text())
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_file_that_the_readme_names_exists() -> None:
    links = [link for link in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", README) if "://" not in link]
    paths = links + re.findall(r"`((?:zu_lightning|callbacks|data)/[\w/]+\.\w+)`", README)
    assert len(links) > 5
    assert "zu_lightning/solvers.py" in paths
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_understood(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py([*words, "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err


def test_every_option_that_is_named_exists(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    known = set[str]()
    methods = (("demo", f"methods/{name}") for name in ("zero_unlearn_gd", "gradient_difference"))
    for configs in (
        ("demo",),
        *methods,
        ("demo_gold",),
        ("teach",),
        ("demo", "presets/downstream"),
        ("demo", "presets/trace"),
    ):
        with pytest.raises(SystemExit):
            train_py(command_line(tmp_path, "--print_config", configs=configs))
        known |= set(options_in(yaml.safe_load(capsys.readouterr().out)))
    assert {"--method.latents.steps", "--data.reading.corpus_tokens", "--method.threshold"} < known
    named = {
        name for page in PAGES for name in re.findall(r"--(?:model|data|trainer)\.[a-z_.]*[a-z]", page.read_text())
    }
    named = {name for name in named if not name.endswith(".help")}
    assert len(named) > 10
    assert named <= known, named - known
