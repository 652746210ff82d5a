"""Links, code, and length of README, CONTRIBUTING, and the documentation."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from zu_lightning.renamed_modules import MODULES, PACKAGES
from zu_lightning.renamed_options import RENAMED

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *DOCS]
GENERATED = ROOT / "docs" / "reference" / "options.md"
MAX_WORDS = {"README.md": 900, "docs": 25_000}
LINK = re.compile(r"(?<!!)\[[^\]]*\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)")
OWN = ("zu_lightning", "callbacks", "data", "configs", "tests", "benchmarks", "docs")
FILE = re.compile(rf"(?<![\w/.-])((?:{'|'.join(OWN)})/[\w./-]*\w\.(?:py|yaml|md|jsonl|txt|csv))\b")
COMMAND = re.compile(r"python -m ([\w.]+)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading)).strip().lower() for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and re.sub("-+", "-", anchor) not in anchors(file)):
            broken.append(f"{target}#{anchor}")
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_python_can_be_parsed(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        ast.parse(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_module_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    files = set(FILE.findall(text))
    assert not [name for name in files if not (ROOT / name).exists()]
    modules = {name.replace(".", "/") for name in COMMAND.findall(text) if name.split(".")[0] in OWN}
    assert not [
        name for name in modules if not any((ROOT / f"{name}{end}").exists() for end in (".py", "/__init__.py"))
    ]


def documented_options() -> set[str]:
    """The options in the generated reference, as they are given on the command line."""
    options, section = set[str](), ""
    for line in GENERATED.read_text().splitlines():
        if line.startswith("## "):
            section = re.split("[,:]", line.removeprefix("## "))[0]
        elif option := re.match(r"\| `(\w+)` \|", line):
            options.add(f"{section}.{option[1]}")
    return options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_that_is_named_is_in_the_reference(page: Path) -> None:
    sections = "model|data|release|method|attacks|downstream|representations"
    named = set(re.findall(rf"(?:--|`)((?:{sections})\.[a-z_.]*[a-z])(?![\w/])", page.read_text()))
    known = documented_options()
    assert "method.latents.steps" in known
    assert not [name for name in named - known if not name.endswith((".help", ".py", ".txt", ".md", ".json"))]


def test_the_changelog_lists_every_renamed_name() -> None:
    renamed = RENAMED | {f"zu_lightning.{old}": f"zu_lightning.{new}" for old, new in (PACKAGES | MODULES).items()}
    table = dict(re.findall(r"^\| `([^`]*)` \| `([^`]*)` \|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE))
    assert {old: table.get(old) for old in renamed} == renamed


def words_of(page: Path) -> int:
    """Words as ``wc -w`` counts them in ``1.0 ± 0.1``, with the numbers and lines of tables."""
    return len(page.read_text().replace("±", " ± ").split())


def test_the_texts_are_short() -> None:
    words = {"README.md": words_of(ROOT / "README.md")}
    words["docs"] = sum(words_of(page) for page in DOCS if page != GENERATED)
    assert all(words[name] <= most for name, most in MAX_WORDS.items()), words


def test_the_reference_of_options_is_what_the_code_says(tmp_path: Path) -> None:
    code = "import runpy; print(runpy.run_path('docs/options.py')['page'](), end='')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == GENERATED.read_text(), "run `python docs/options.py`"
