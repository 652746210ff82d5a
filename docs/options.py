"""Write docs/reference/options.md, the reference of all options, from the docstrings of the code.

python docs/options.py
"""

import ast
import inspect
import re
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from docstring_parser import parse

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import callbacks  # noqa: E402
import zu_lightning as zu  # noqa: E402
from data import TeachDataModule, UnlearnDataModule, WorldTextDataModule  # noqa: E402
from zu_lightning.attacks.measurement import Attacks  # noqa: E402
from zu_lightning.report.measurements import Downstream, Representations  # noqa: E402

EDITING = (zu.Erase, zu.ZeroUnlearnGD, zu.ZeroUnlearn, zu.ZeroUnlearnSoft, zu.Memit, zu.AlphaEdit, zu.Rome)
GRADIENT = (zu.NPO, zu.SimNPO, zu.RMU, zu.GradientAscent, zu.GradientDifference, zu.FineTuning)
SECTIONS: list[tuple[str, type]] = [
    ("model", zu.EvaluationModule),
    ("data", UnlearnDataModule),
    ("data.reading", zu.ReadingOptions),
    ("release", zu.ReleaseProtocol),
    ("method, for every method", zu.Method),
    ("method, for methods that edit layers", zu.EditingMethod),
    *((f"method: {cls.__name__}", cls) for cls in EDITING),
    ("method.latents", zu.LatentOptions),
    ("method, for gradient methods", zu.GradientMethod),
    *((f"method: {cls.__name__}", cls) for cls in GRADIENT),
    ("method.training", zu.TrainingOptions),
    ("method.lora", zu.LoraOptions),
    ("attacks", Attacks),
    ("downstream", Downstream),
    ("representations", Representations),
    ("model: zu_lightning.TeachModule", zu.TeachModule),
    ("data: data.TeachDataModule", TeachDataModule),
    ("data: data.WorldTextDataModule", WorldTextDataModule),
    ("trainer.callbacks: callbacks.ExportEditedModel", callbacks.ExportEditedModel),
    ("trainer.callbacks: callbacks.ExportTaught", callbacks.ExportTaught),
    ("trainer.callbacks: callbacks.Report", callbacks.Report),
    ("trainer.callbacks: callbacks.TraceLayers", callbacks.TraceLayers),
]


def described_fields(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, those of its bases included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not is_dataclass(base):
            continue
        (node,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(node, ast.ClassDef)
        for statement, after in zip(node.body, node.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(statement.target)] = str(ast.literal_eval(after.value))
    return found


def options_of(cls: type) -> list[tuple[str, str, str]]:
    """Name, default, and meaning of the options of a class; of a method those that it adds or sets anew."""
    if is_dataclass(cls):
        meaning, inherited = described_fields(cls), {}
        for base in (zu.Method, zu.EditingMethod, zu.GradientMethod):
            if base is not cls and issubclass(cls, base):
                inherited |= {field.name: field.default for field in fields(base)}
        own = [field for field in fields(cls) if inherited.get(field.name, MISSING) != field.default]
        return [(field.name, default_text(field.default), meaning.get(field.name, "")) for field in own]
    described = {one.arg_name: one.description or "" for one in parse(inspect.getdoc(cls) or "").params}
    parameters = [one for one in inspect.signature(cls).parameters.values() if one.name in described]
    return [(one.name, default_text(one.default), described[one.name]) for one in parameters]


def default_text(value: Any) -> str:
    """A default as YAML has it; nothing for objects whose options have a table of their own."""
    if value is MISSING or value is inspect.Parameter.empty:
        return "required"
    if is_dataclass(value):
        return ""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def page() -> str:
    """The whole page."""
    lines = [
        "# Options",
        "",
        "This page is generated from the code by `python docs/options.py`. Options are `--section.name value` on the",
        "command line, and `name: value` in a section of a file; see [Command line](command-line.md).",
    ]
    for title, cls in SECTIONS:
        rows = options_of(cls)
        summary = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
        lines += ["", f"## {title}", "", cell(summary)]
        if rows:
            lines += ["", "| option | default | meaning |", "|---|---|---|"]
            lines += [f"| `{name}` | {default} | {cell(meaning)} |" for name, default, meaning in rows]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text in one cell of a table."""
    plain = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return plain.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    (ROOT / "docs" / "reference" / "options.md").write_text(page(), encoding="utf-8")
