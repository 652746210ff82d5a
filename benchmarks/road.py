"""How long the road through the code is: files that one run passes, and statements and lines by package.

python -m benchmarks.road
python -m benchmarks.road --run
"""

import argparse
import ast
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType

from benchmarks.setup import table_head, table_row

ROOT = Path(__file__).parent.parent
FOLDERS = ("zu_lightning", "callbacks", "data", "benchmarks")


def statements(path: Path) -> int:
    """Number of statements of a file, docstrings apart."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.stmt)]
    docstrings = [
        node
        for node in nodes
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return len(nodes) - len(docstrings)


def package(path: Path) -> str:
    """The package of the library that a file belongs to, or its folder."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == "zu_lightning" else parts[0]


def sizes() -> tuple[Counter[str], Counter[str]]:
    """Statements, and lines, by package."""
    counts, lines = Counter[str](), Counter[str]()
    for path in [ROOT / "train.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]:
        counts[package(path)] += statements(path)
        lines[package(path)] += len(path.read_text().splitlines())
    return counts, lines


def files_of_a_run() -> set[Path]:
    """Files of the project in which a function runs while the demo is fitted."""
    seen: set[str] = set()

    def look(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name != "<module>":
            seen.add(frame.f_code.co_filename)

    import train

    with tempfile.TemporaryDirectory() as folder:
        threading.setprofile(look)
        sys.setprofile(look)
        try:
            train.main(["fit", "--config=configs/demo.yaml", f"--trainer.default_root_dir={folder}"])
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    own = {ROOT / "train.py", *(ROOT / folder for folder in FOLDERS)}
    return {path for path in map(Path, seen) if path in own or own & set(path.parents)}


def main() -> None:
    """Print the sizes, or the files of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="count the files that a fit of the demo passes")
    if parser.parse_args().run:
        files = sorted(str(path.relative_to(ROOT)) for path in files_of_a_run())
        print("\n".join(files), f"\n{len(files)} files", sep="")
        return
    counts, lines = sizes()
    tests = sum(len(path.read_text().splitlines()) for path in (ROOT / "tests").rglob("*.py"))
    source = sum(lines.values()) - lines["benchmarks"]
    print(table_head(("package", "statements", "lines")))
    for name in sorted(counts):
        print(table_row((name, counts[name], lines[name])))
    print(table_row(("all", counts.total(), lines.total())))
    print(f"\ntests: {tests} lines, {tests / source:.2f} for each line of source without benchmarks")


if __name__ == "__main__":
    main()
