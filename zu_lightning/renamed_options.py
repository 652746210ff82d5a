"""Options and files of the previous release, as this one writes them; this file goes with the next one."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger(__name__)

RENAMED = {
    "closed_form.rule": "method",
    "closed_form.rule.slack": "release.slack",
    "closed_form.rule.rounds": "method.reweighting_iterations",
    "model.loss": "method",
    "model.weights": "method.weights",
    "model.training": "method.training",
    "model.lora": "method.lora",
    "model.lora.everywhere": "method.lora.all_linear",
    "model.target": "method.target_kind",
    "model.optimize_values": "method.optimize_values",
    "model.latents": "method.latents",
    "model.latents.every_phrasing": "method.latents.average_over_prompts",
    "model.latents.phrasings_per_step": "method.latents.prompts_per_step",
    "model.latents.strangers": "method.latents.unknown_subjects",
    "model.latents.kl_position": "release.kl_position",
    "model.latents.scale_free": "release.scale_free_latents",
    "model.objective": "method",
    "model.steps": "method.steps",
    "model.tolerance": "method.tolerance",
    "model.learning_rate": "method.learning_rate",
    "model.parametrization": "release.parametrization",
    "model.tiny": "model.random_tiny_model",
    "data.ids": "data.ids_file",
    "data.strangers": "data.unknown_subjects",
    "data.halves": "release.split_halves",
    "data.nq_prefix": "release.nq_prefix",
    "data.reading.corpus_seed": "release.corpus_seed",
    "attacks.suite": "attacks.preset",
}
"""Options, and everything below them unless that has a line of its own."""

ZERO_TERM = ("ZeroUnlearn", "ZeroUnlearnGD", "ZeroUnlearnSoft")
"""Methods that have the option ``optimize_values``."""
DESCENT = ("steps", "tolerance", "learning_rate", "objective")
"""Options of gradient descent, which every module had."""
TRAINING = {"learning_rate": 1e-5, "scale_free": False}
"""Defaults of gradient methods that have changed."""


def new_option(name: str) -> str | None:
    """The present name of an option, given without dashes; ``None`` if it has kept it."""
    parts = [part for part in name.split(".") if part != "init_args"]
    for length in range(len(parts), 0, -1):
        new = RENAMED.get(".".join(parts[:length]))
        if new is not None:
            return ".".join([new, *parts[length:]])
    return None


def translate_arguments(words: Sequence[str]) -> list[str]:
    """A command line of the previous release in the options of this one; each that was renamed is warned about."""
    found: list[str] = []
    words = list(words)
    given = " ".join(words)
    while words:
        option, has_value, value = words.pop(0).partition("=")
        new = new_option(option.removeprefix("--")) if option.startswith("--") else None
        if new is None:
            found.append(option + has_value + value)
            continue
        if not has_value:
            value = words.pop(0) if words else ""
        _warn(option, f"--{new}")
        if new == "method" and value == "null":
            found += ["--method=ZeroUnlearnGD", "--method.solve=descent"]
        else:
            found.append(f"--{new}={value}")
        if option.endswith(".loss") and "GradientModule" in given:  # not in a file, which says how to train
            unset = {name: value for name, value in TRAINING.items() if f"training.{name}" not in given}
            found += [f"--method.training.{name}={value}".lower() for name, value in unset.items()]
    return found


def translate_config(config: Mapping[str, Any], *, quiet: bool = False) -> dict[str, Any]:
    """A configuration of the previous release in the sections of this one; without old options it stays as it is.

    Args:
        config: What the file holds.
        quiet: Whether to leave out the warnings.
    """
    leaves = dict(_leaves(config))
    old = {name for name in leaves if new_option(name)}
    if not old and "closed_form" not in config:
        return dict(config)
    loss, rule = leaves.get("model.loss.class_path"), leaves.get("closed_form.rule.class_path")
    rule = rule or leaves.get("closed_form.rule")
    method = loss or rule or ("ZeroUnlearnGD" if "closed_form" in config else None)
    short, descends = str(method).rpartition(".")[2], method is not None and not loss and not rule
    found: dict[str, Any] = {}
    if loss:
        found = {f"method.training.{name}": value for name, value in TRAINING.items()}
    for name, value in leaves.items():
        option = name.split(".")[1] if name.startswith("model.") else ""
        is_dropped = (option in DESCENT and not descends) or (option == "optimize_values" and short not in ZERO_TERM)
        if is_dropped or name in ("model.class_path", "closed_form.rule") or name.endswith("loss.class_path"):
            continue
        found[new_option(name) or name] = value
    if not quiet:
        log.warning(
            "a configuration uses old names, which go with the next release: %s",
            ", ".join(f"{name} is now {new_option(name)}" for name in sorted(old)),
        )
    result = _nested(found)
    options = result.pop("method", {})
    options.pop("class_path", None)
    if descends:
        options["solve"] = "descent"
    if method or options:
        result["method"] = ({"class_path": method} if method else {}) | ({"init_args": options} if options else {})
    return result


def _leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """All values by dotted names; ``init_args`` is not part of a name, and lists and classes of others stay whole."""
    is_other = isinstance(value, Mapping) and "class_path" in value and not name.endswith(("rule", "loss", "model"))
    if not isinstance(value, Mapping) or not value or is_other:
        return [(name, value)]
    found = []
    for key, part in value.items():
        found += _leaves(part, name if key == "init_args" else f"{name}.{key}".removeprefix("."))
    return found


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in leaves.items():
        *sections, last = name.split(".")
        section = result
        for part in sections:
            section = section.setdefault(part, {})
        section[last] = value
    return result


def _warn(old: str, new: str) -> None:
    log.warning("%s is now %s; the old name goes with the next release.", old, new)
