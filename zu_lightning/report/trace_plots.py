"""Pictures and JSON of causal tracing (figures 2 and 5 to 7 of the paper)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from zu_lightning.evaluation.bootstrap import interval
from zu_lightning.report.pictures import Drawing, new_figure
from zu_lightning.report.results import without_nan
from zu_lightning.runtime.files import replacing
from zu_lightning.tracing.indirect_effects import KINDS, IndirectEffects
from zu_lightning.tracing.recommendation import Recommendation
from zu_lightning.tracing.traced_prompts import ROLES, Role

KIND_NAMES = {"hidden": "state after the layer", "mlp": "MLP", "attention": "attention"}

ROLE_NAMES: dict[Role, str] = {
    "subject_first": "first subject token",
    "subject_middle": "middle subject tokens",
    "subject_last": "last subject token",
    "after_first": "first token after it",
    "after_further": "further tokens",
    "last": "last token",
}

LINES: tuple[Role, ...] = ("subject_last", "last")
"""Roles with a panel of lines and bands."""


def draw_heat_maps(effects: IndirectEffects, description: str) -> Drawing:
    """Mean effect by role and layer, one panel for each kind of module."""
    figure = new_figure(11, 3.2)
    means = interval(effects.probability).mean
    limit = max(float(means.nan_to_num().abs().max()), 1e-9)
    for i, (kind, axes) in enumerate(zip(KINDS, figure.subplots(1, len(KINDS), sharey=True), strict=True)):
        # Blue takes the answer further away.
        image = axes.imshow(means[i].T.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        axes.set(title=KIND_NAMES[kind] + _window(effects, kind), xlabel="layer")
        # Not every subject has a middle token: few facts say little about a row.
        facts = (~effects.probability.isnan()).any(1).any(1).sum(0)
        names = [f"{ROLE_NAMES[role]} (n = {n})" for role, n in zip(ROLES, facts.tolist(), strict=True)]
        axes.set_yticks(range(len(ROLES)), names)
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, ax=axes, label="indirect effect (probability)" if i == len(KINDS) - 1 else "")
    return Drawing(figure, "trace_heat_maps", "Indirect effect by layer and token", description)


def draw_effect_lines(effects: IndirectEffects, description: str) -> Drawing:
    """Mean effect by layer with its band over facts, one panel for each role of ``LINES``."""
    figure = new_figure(9, 3.4)
    means = interval(effects.probability)
    layers = range(effects.layers)
    for role, axes in zip(LINES, figure.subplots(1, len(LINES), sharey=True), strict=True):
        for i, kind in enumerate(KINDS):
            mean, low, high = (
                values[i, :, ROLES.index(role)].numpy() for values in (means.mean, means.low, means.high)
            )
            (line,) = axes.plot(layers, mean, marker=".", label=KIND_NAMES[kind] + _window(effects, kind))
            axes.fill_between(layers, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(title=ROLE_NAMES[role], xlabel="layer", ylabel="indirect effect (probability)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.axhline(0, color="gray", linewidth=0.5)
    axes.legend()
    return Drawing(figure, "trace_by_layer", "Indirect effect by layer, with 95% bands", description)


def described(effects: IndirectEffects, recommendation: Recommendation) -> str:
    """Alternative text of the pictures."""
    means = interval(effects.probability).mean
    peaks = []
    for i, kind in enumerate(KINDS):
        layer, role = divmod(int(means[i].nan_to_num().argmax()), len(ROLES))
        early = means[i, :, ROLES.index(recommendation.role)].nan_to_num()
        peaks.append(
            f"{KIND_NAMES[kind]}: largest at layer {layer}, {ROLE_NAMES[ROLES[role]]} ({means[i, layer, role]:.3f}); "
            f"at the {ROLE_NAMES[recommendation.role]} largest at layer {int(early.argmax())} ({early.max():.3f})"
        )
    return (
        f"Rise of the answer's probability when one state is restored in a corrupted run "
        f"({effects.options.corruption}, {len(effects.facts)} facts; "
        f"{effects.clean.mean():.3f} clean, {effects.corrupted.mean():.3f} corrupted). "
        f"{'. '.join(peaks)}. Recommended: {recommendation.sentence}."
    )


def write_trace(path: Path, effects: IndirectEffects, recommendation: Recommendation) -> None:
    """Write means over facts with their bands, and the recommendation, as JSON."""
    content = {
        "facts": effects.facts,
        "skipped": effects.skipped,
        "options": asdict(effects.options) | {"window": effects.window},
        "clean": _mean(effects.clean),
        "corrupted": _mean(effects.corrupted),
        "kinds": KINDS,
        "roles": ROLES,
        "axes": ["kind", "layer", "role"],
        "probability": _banded(effects.probability),
        "log_probability": _banded(effects.log_probability),
        "recommendation": asdict(recommendation) | {"is_sure": recommendation.is_sure},
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")


def _window(effects: IndirectEffects, kind: str) -> str:
    return f", {effects.window} layers" if kind != "hidden" and effects.window > 1 else ""


def _banded(values: Tensor) -> dict[str, Any]:
    return {name: without_nan(value.tolist()) for name, value in vars(interval(values)).items()}


def _mean(values: Tensor) -> float | None:
    return values.mean().item() if len(values) else None
