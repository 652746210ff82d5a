"""The report: one HTML page about a run.

Everything on it comes from ``metrics.json`` and from the pictures in the run's folder. It needs no network, and no
script to be read; with scripts, tables can be sorted and filtered.
"""

import base64
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from zu_lightning.evaluation.score_table import SCORES
from zu_lightning.lm.adapter import adapter_rank, serving_commands
from zu_lightning.report.pictures import Picture, pictures_in
from zu_lightning.report.results import Results
from zu_lightning.runtime.files import replacing

FILE_NAME = "report.html"

Table = Sequence[Sequence[str]]
"""A line of heads, then lines of as many cells."""

ATTACK_MEANINGS = {
    "rank": "share of other answers of the same relation that are less likely than the true one",
    "rank_first": "facts whose true answer is the most likely of its relation",
    "leak": "facts that 20 samples would contain",
    "sampling": "facts that 20 samples contain",
    "prompting_few_shot": "facts that it states after examples",
    "prompting_prefix": "facts that it states after another text",
    "prompting_repeat": "facts that it states after being made to repeat",
    "prompting_reversed": "share of made-up subjects that are less likely than the true one, given the answer",
    "memorization": "tokens of the statement that it continues word by word",
    "extraction": "how much of the statement it completes by itself",
    "truth_ratio": "how much more likely the truth is than other answers",
    "membership_loss": "how likely the statement is, compared with made-up ones",
    "membership_min_k": "the same, by its least likely tokens",
    "membership_min_k_plus_plus": "the same, relative to the other tokens at the same positions",
    "membership_reference": "the same, relative to the gold model",
    "lens": "facts that its own output head decodes from its layers",
    "probe": "facts that a trained classifier decodes from its layers",
}
"""What the scores of attacks mean, in plain words."""


def write_page(folder: Path) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        folder: Holds ``metrics.json``, and may hold pictures, ``model/``, and ``adapter/``.

    Returns:
        Path of the page.

    Raises:
        InputError: There are no results that can be read.
    """
    there = {name for name in ("model", "adapter", "config.yaml") if (folder / name).exists()}
    with replacing(folder / FILE_NAME) as temporary:
        rank = adapter_rank(folder / "adapter")
        temporary.write_text(page(Results.read(folder), pictures_in(folder), there, rank), encoding="utf-8")
    return folder / FILE_NAME


def page(results: Results, pictures: list[Picture], there: Set[str] = frozenset(), rank: int | None = None) -> str:
    """The page.

    Args:
        results: Of the run.
        pictures: To show, in this order.
        there: Which of ``model``, ``adapter``, and ``config.yaml`` are beside the page.
        rank: Rank of the adapter, if there is one that can be read.
    """
    content = asdict(results)
    environment = _environment()
    environment.globals |= {"number": lambda path, digits=1, scale=1: _number(content, path, digits, scale)}
    return environment.get_template("run.html.j2").render(
        results=results,
        pictures=pictures,
        there=there,
        base=_source(results.model),
        serving={} if rank is None else serving_commands(results.model, "adapter", rank),
        summary=summary(results),
        scores=[score for score in SCORES if score.name in results.after],
        meaning_of=_meaning,
        columns=[name for name in ("efficacy", "generalization", "specificity") if _measured(results, name)],
        models=[
            name
            for name in ("base", "edited", "chance", "gold")
            if any(name in one for one in results.attacks.values())
        ],
        total_seconds=sum(results.seconds.values()),
    )


def _source(model: str) -> Markup:
    """How ``from_pretrained`` is told where a model is."""
    path = Path(model)
    if path.suffix == ".gguf":
        return Markup('"{}", gguf_file="{}"').format(path.parent, path.name)
    return Markup('"{}"').format(model)


def write_comparison_page(folder: Path, title: str, tables: Mapping[str, Table], done: tuple[int, int]) -> Path:
    """Write ``report.html`` into a comparison's folder, with the pictures in it.

    Args:
        folder: Where to write.
        title: Of the page.
        tables: By name, a line of heads and then a line per method; what is between asterisks becomes bold.
        done: How many runs are finished, and how many there are.

    Returns:
        Path of the page.
    """
    template = _environment().get_template("comparison.html.j2")
    with replacing(folder / FILE_NAME) as temporary:
        text = template.render(title=title, tables=tables, finished=done[0], runs=done[1], pictures=pictures_in(folder))
        temporary.write_text(text, encoding="utf-8")
    return folder / FILE_NAME


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("zu_lightning.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"image": _image}
    return environment


def summary(results: Results) -> str:
    """One sentence on what the model answers after the edit."""
    before, after = results.before, results.after
    if "efficacy" not in after:
        return "This run ended before the edited model was evaluated."
    facts = "the fact" if results.facts == 1 else f"the {results.facts} facts"
    said = f"Asked directly, the model still gives {after['efficacy']:.0f}% of {facts} it was to forget"
    others = {"retain": "of other facts", "same_subject": "of the other facts about the same people or things"}
    kept = [
        f"{after[name]:.0f}% {text}" + (f" (before {before[name]:.0f}%)" if name in before else "")
        for name, text in others.items()
        if name in after
    ]
    was = f" (before {before['efficacy']:.0f}%)" if "efficacy" in before else ""
    return f"{said}{was}" + (f". It gives {', and '.join(kept)}." if kept else ".")


def _meaning(name: str) -> str:
    """Meaning of a score of an attack, in plain words; empty if the attack's first score explains it."""
    start, _, layer = name.partition("_layer_")
    if layer:
        return f"the same, after layer {layer} alone"
    if name.endswith("_paraphrases"):
        return "the same, to the questions in other words"
    return ATTACK_MEANINGS.get(start, "")


def _measured(results: Results, name: str) -> bool:
    return any(name in fact.after for fact in results.per_fact)


def _number(content: Mapping[str, Any], path: tuple[object, ...], digits: int, scale: float) -> Markup:
    """A number with its place in ``metrics.json``, so that a reader, and a test, can find it there."""
    value: Any = content
    for step in path:
        value = value[step] if not isinstance(value, dict) or step in value else None
        if value is None:
            return Markup('<span class="none">not measured</span>')
    shown, where = f"{scale * value:.{digits}f}", ".".join(map(str, path))
    return Markup('<data value="{}" title="{} in metrics.json">{}</data>').format(value, where, shown)


def _image(picture: Picture) -> str:
    """A picture as a data URL."""
    return "data:image/svg+xml;base64," + base64.b64encode(picture.svg.encode()).decode()
