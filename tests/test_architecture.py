"""Files, classes, and parameter lists that are large are reported; only a file beyond 400 lines fails."""

import ast
import warnings
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted(path for folder in ("zu_lightning", "callbacks", "data") for path in (ROOT / folder).rglob("*.py"))
MAX_FILE_LINES, LARGE_CLASS, MANY_PARAMETERS = 400, 150, 7
THE_EQUATIONS = ROOT / "zu_lightning" / "solvers.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_can_be_read_at_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES or path == THE_EQUATIONS
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and (lines := (node.end_lineno or 0) - node.lineno + 1) > LARGE_CLASS:
            warnings.warn(f"{path.name}: {node.name} is large: {lines} lines", stacklevel=1)
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            if count > MANY_PARAMETERS and path != THE_EQUATIONS:
                warnings.warn(f"{path.name}: {node.name} is large: {count} parameters", stacklevel=1)
