"""Movement of representations by an edit: outputs of edited projections for facts, in two dimensions and in numbers.

After figures 3 and 8 to 10 of ZeroUnlearn (arXiv 2605.18879), which show the outputs of an edited layer's MLP for the
forgotten facts. N facts in three groups, D outputs of a projection.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zu_lightning.editing.request import Request, about_subjects_of
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.lm.architecture import adapter_around
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import tokenize_all
from zu_lightning.runtime.distributed import all_reduce
from zu_lightning.runtime.files import read_json, replacing
from zu_lightning.tracing.geometry import movement, principal_components, separability

FILE_NAME = "representations.json"

GROUPS = ("forget", "kept", "unseen")
"""Forgotten facts, protected facts about other subjects, and retained facts that the method is not given."""

IN_EVERY_RUN = ("forget", "unseen")
"""Groups that runs of different methods on the same draw share."""

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Plane:
    """Facts in the plane of two principal components, before and after an edit.

    Attributes:
        explained: Share of the variance that each component explains, 0..1, of the states that they were fit on.
        before: Coordinates of the N facts before the edit.
        after: Their coordinates after it.
    """

    explained: tuple[float, float]
    before: Points
    after: Points

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Plane":
        """Parse a plane from JSON."""
        before, after = (tuple((float(x), float(y)) for x, y in content[when]) for when in ("before", "after"))
        first, second = content["explained"]
        return cls((first, second), before, after)


@dataclass(frozen=True)
class Shift:
    """Movement of a group of facts by an edit, in all D dimensions.

    Attributes:
        facts: Number of facts.
        distance: Distance between the means before and after, in standard deviations within the group before.
        moved: Root mean square distance between each fact's states before and after, in the same unit. Both are
            ``None`` without a unit, see :func:`zu_lightning.tracing.geometry.movement`.
        auc: 0.5 if before and after cannot be told apart, 1 if they can; ``None`` for fewer than three facts. See
            :func:`zu_lightning.tracing.geometry.separability`.
    """

    facts: int
    distance: float | None
    moved: float | None
    auc: float | None


@dataclass(frozen=True)
class LayerRepresentations:
    """Effect of an edit on the outputs of a layer's projection.

    Attributes:
        layer: Index of the layer, from 0.
        pooled: Components of all groups, before and after together, which show the most variance.
        base: Components of the unedited model, of the groups that all runs on the same draw share (``IN_EVERY_RUN``):
            the same for all methods, so that their pictures can be compared.
        shifts: Movement of each group.
    """

    layer: int
    pooled: Plane
    base: Plane
    shifts: dict[str, Shift]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "LayerRepresentations":
        """Parse a layer from JSON."""
        shifts = {str(group): Shift(**shift) for group, shift in content["shifts"].items()}
        pooled, base = (Plane.from_json(content[name]) for name in ("pooled", "base"))
        return cls(int(content["layer"]), pooled, base, shifts)


@dataclass(frozen=True)
class RepresentationMap:
    """Representations of facts at the edited layers, before and after an edit: the schema of ``representations.json``.

    Attributes:
        facts: Ids of the N facts.
        groups: Group of each.
        layers: The edited layers, lowest first.
    """

    facts: tuple[str, ...]
    groups: tuple[str, ...]
    layers: tuple[LayerRepresentations, ...]

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, such as ``layer_0/forget_auc``; those that are undefined are left out."""
        numbers: dict[str, float | None] = {}
        for at in self.layers:
            for i, share in enumerate(at.pooled.explained, 1):
                numbers[f"layer_{at.layer}/explained_{i}"] = share
            for group, shift in at.shifts.items():
                for name in ("distance", "moved", "auc"):
                    numbers[f"layer_{at.layer}/{group}_{name}"] = getattr(shift, name)
        return {name: value for name, value in numbers.items() if value is not None}

    def write(self, folder: Path) -> Path:
        """Write ``representations.json`` into a folder; its path."""
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        return folder / FILE_NAME

    @classmethod
    def read(cls, folder: Path) -> "RepresentationMap":
        """The representations in a run's folder.

        Raises:
            InputError: There are none, or they follow another schema.
        """
        return read_json(folder / FILE_NAME, cls._parsed)

    @classmethod
    def _parsed(cls, content: Any) -> "RepresentationMap":
        layers = tuple(LayerRepresentations.from_json(layer) for layer in content["layers"])
        return cls(tuple(content["facts"]), tuple(content["groups"]), layers)


def groups_of(request: Request, most: int) -> dict[str, list[Fact]]:
    """The facts to represent, by group: the first of each, at most ``most``; a group without facts is left out.

    Other facts about the forgotten subjects are in no group: at the lookup token they are nearly the forgotten ones.
    """
    same = {fact.id for fact in about_subjects_of(request.forget, request.retain)}
    unseen = [fact for fact in request.retain if fact.id not in same]
    of_group = dict(zip(GROUPS, (request.forget, request.protected_others, unseen), strict=True))
    return {group: list(facts[:most]) for group, facts in of_group.items() if facts}


def projection_outputs(
    lm: EditableLM, facts: Sequence[Fact], layers: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> dict[int, Tensor]:
    """Outputs of output projections at the lookup tokens of the bare prompts, an adapter's part included.

    All processes must call this; they share the facts.

    Args:
        lm: The model; dropout is turned off meanwhile.
        facts: N facts.
        layers: Indices of layers.
        batch_tokens: Maximum number of tokens per batch.

    Returns:
        For each layer N x D, float64, the same in all processes.
    """
    texts = tokenize_all(lm.tokenizer, facts)
    modules = [adapter_around(lm.model, lm.projections[layer]) for layer in layers]
    by_layer = [
        torch.zeros(len(facts), lm.weight(layer).shape[0], dtype=torch.float64, device=lm.device) for layer in layers
    ]
    with _without_dropout(lm):
        for indices, batch in batched(lm, texts, batch_tokens, sharded=True):
            for outputs, record in zip(by_layer, lm.record(batch, modules), strict=True):
                outputs[indices] = record.output[range(len(indices)), batch.lookup].double()
    return dict(zip(layers, all_reduce(*by_layer), strict=True))


@contextmanager
def _without_dropout(lm: EditableLM) -> Iterator[None]:
    training = [module for module in lm.model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def representation_map(
    groups: Mapping[str, Sequence[Fact]], before: Mapping[int, Tensor], after: Mapping[int, Tensor]
) -> RepresentationMap:
    """Representations before and after an edit, in two dimensions and in numbers.

    Args:
        groups: Facts by group; N in all.
        before: For each layer the outputs for these facts, group after group, before the edit, N x D.
        after: The same after the edit.
    """
    names = tuple(group for group, facts in groups.items() for _ in facts)
    ids = tuple(fact.id for facts in groups.values() for fact in facts)
    layers = tuple(_layer(layer, names, before[layer].cpu().double(), after[layer].cpu().double()) for layer in after)
    return RepresentationMap(ids, names, layers)


def _layer(layer: int, names: Sequence[str], before: Tensor, after: Tensor) -> LayerRepresentations:
    rows = {group: torch.tensor([name == group for name in names]) for group in dict.fromkeys(names)}
    in_every_run = torch.tensor([name in IN_EVERY_RUN for name in names])
    shifts = {group: _shift(before[own], after[own]) for group, own in rows.items()}
    pooled = _plane(torch.cat([before, after]), before, after)
    return LayerRepresentations(layer, pooled, _plane(before[in_every_run], before, after), shifts)


def _shift(before: Tensor, after: Tensor) -> Shift:
    distance, moved = movement(before, after) or (None, None)
    return Shift(len(before), distance, moved, separability(before, after))


def _plane(fitted: Tensor, before: Tensor, after: Tensor) -> Plane:
    mean, components, explained = principal_components(fitted)
    first, second = explained.tolist()
    points = [tuple((x, y) for x, y in ((states - mean) @ components.T).tolist()) for states in (before, after)]
    return Plane((first, second), points[0], points[1])
