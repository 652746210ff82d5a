"""The code keeps its rooms small: files, classes, and parameter lists."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LIBRARY = ROOT / "zu_lightning"
FILES = sorted(path for folder in ("zu_lightning", "callbacks", "data") for path in (ROOT / folder).rglob("*.py"))
EVERYWHERE = [*FILES, ROOT / "train.py", *sorted((ROOT / "benchmarks").rglob("*.py"))]
MAX_FILE_LINES, MAX_CLASS_LINES, MAX_PARAMETERS = 300, 150, 7
THE_EQUATIONS = LIBRARY / "solvers.py"


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", sorted(LIBRARY.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_classes_are_small(path: Path) -> None:
    if path != THE_EQUATIONS:
        assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    classes = [node for node in nodes(path) if isinstance(node, ast.ClassDef)]
    lines = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in classes}
    assert not {name: count for name, count in lines.items() if count > MAX_CLASS_LINES}


def test_functions_take_few_parameters() -> None:
    found = []
    for path in EVERYWHERE:
        for node in ast.walk(tree := ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = node.args
                names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
                names = [name for name in names if name not in ("self", "cls")]
                if len(names) > MAX_PARAMETERS and path != THE_EQUATIONS and not _is_module_init(tree, node):
                    found.append(f"{path.relative_to(ROOT)}: {node.name} has {len(names)}")
    assert not found


def _is_module_init(tree: ast.Module, function: ast.FunctionDef) -> bool:
    """Whether a function is the ``__init__`` of a LightningModule or DataModule, whose arguments are options."""
    return any(
        isinstance(node, ast.ClassDef)
        and function in node.body
        and function.name == "__init__"
        and any("Module" in ast.unparse(base) for base in node.bases)
        for node in ast.walk(tree)
    )
