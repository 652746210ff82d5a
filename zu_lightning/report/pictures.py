"""Pictures of a run: PNG and SVG files with title and alternative text in their metadata.

A report shows every picture that it finds in a folder, whoever drew it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from zu_lightning.runtime.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "pictures"
"""Folder of the pictures, in that of a run."""

METADATA = ".//{http://creativecommons.org/ns#}Work/{http://purl.org/dc/elements/1.1/}"
"""Where matplotlib puts metadata in an SVG."""

STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "zu-lightning"}
"""Keep text as text, and write identical pictures to identical files."""

DOTS_PER_INCH = 150


class Drawing(NamedTuple):
    """A figure with its name and texts.

    Attributes:
        figure: The drawing.
        name: Name of its files, without an ending.
        title: What it shows, in a few words.
        description: Alternative text.
    """

    figure: "Figure"
    name: str
    title: str
    description: str


@dataclass(frozen=True)
class Picture:
    """A picture in a run's folder.

    Attributes:
        name: The files' name without its ending.
        title: What it shows, in a few words.
        description: Alternative text.
        svg: The drawing.
    """

    name: str
    title: str
    description: str
    svg: str


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches."""
    from matplotlib.figure import Figure  # slow to import, and not every run draws

    return Figure(figsize=(width, height), layout="constrained")


def save_picture(drawing: Drawing, folder: Path) -> Path:
    """Write a drawing as PNG and SVG into the pictures of a run's folder; the path of the PNG."""
    from matplotlib import rc_context

    about = {"Title": drawing.title, "Description": drawing.description}
    path = folder / FOLDER / f"{drawing.name}.png"
    with rc_context(STYLE):
        with replacing(path.with_suffix(".svg")) as temporary:
            drawing.figure.savefig(temporary, format="svg", metadata=about | {"Date": None})
        with replacing(path) as temporary:
            drawing.figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata=about)
    return path


def pictures_in(folder: Path) -> list[Picture]:
    """The pictures in a run's folder, by name."""
    return [_read(path) for path in sorted((folder / FOLDER).glob("*.svg"))]


def _read(path: Path) -> Picture:
    svg = path.read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    title, description = (root.findtext(METADATA + name, path.stem) for name in ("title", "description"))
    return Picture(path.stem, title, description, svg)
