"""Layers to edit, recommended from causal tracing, and the certainty of that.

An edit changes the outputs of MLPs at the lookup token. It can start where restoring an MLP there restores the answer,
and has to end while the token's state still carries the answer: MEMIT (arXiv 2210.07229, Section 4) spreads an edit
over such a range.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zu_lightning.evaluation.bootstrap import interval, resampled_means
from zu_lightning.runtime.files import replacing
from zu_lightning.tracing.indirect_effects import IndirectEffects
from zu_lightning.tracing.traced_prompts import ROLES, Role

HIGH = 0.5
"""An effect is high if it is at least this share of the largest one."""

SURE = 0.7
"""A recommendation is sure if its overlap with those from resampled facts is at least this."""

LEAST_SHARE = 0.05
"""Share of the probability lost to corruption that the best layer must restore, at the lower end of its interval."""

LEAST_FACTS = 10
"""With fewer facts no recommendation is sure."""


@dataclass(frozen=True)
class Recommendation:
    """Layers to edit.

    Attributes:
        layers: The layers, lowest first; empty if no fact was traced.
        sureness: Mean Jaccard overlap of ``layers`` with the recommendations from resampled facts, 0 to 1.
        role: Role of the lookup token.
        doubts: Why the recommendation is not sure; empty if it is.
    """

    layers: tuple[int, ...]
    sureness: float
    role: Role
    doubts: tuple[str, ...]

    @property
    def is_sure(self) -> bool:
        """Whether there are no doubts."""
        return not self.doubts

    @property
    def sentence(self) -> str:
        """The recommendation in words."""
        if not self.layers:
            return f"no layers are recommended: {'; '.join(self.doubts)}"
        how = "sure" if self.is_sure else "NOT SURE"
        overlap = f"overlap over resampled facts {self.sureness:.2f}"
        return f"edit layers {list(self.layers)} ({how}; {overlap}){''.join(f'; {doubt}' for doubt in self.doubts)}"

    def write(self, path: Path) -> None:
        """Write the layers as a configuration file for ``train.py``."""
        with replacing(path) as temporary:
            temporary.write_text(f"# Causal tracing: {self.sentence}.\nmodel:\n  layers: {list(self.layers)}\n")


def recommend(effects: IndirectEffects, role: Role = "subject_last", seed: int = 0) -> Recommendation:
    """Recommend a range of layers to edit.

    It starts at the first of the layers around the best one whose MLPs have a high effect at the lookup token (see
    ``HIGH``), and ends at the last of the layers around the best one whose hidden states there have.

    Args:
        effects: Result of the tracing.
        role: Role of the lookup token, where an edit works.
        seed: Seed of the bootstrap over facts.

    Returns:
        The layers, with all reasons to doubt them.
    """
    both = torch.stack([effects.of("mlp", role), effects.of("hidden", role)], 1)
    both = both[~both[:, 0, 0].isnan()]
    if not len(both):
        return Recommendation((), 0.0, role, (f"no fact that the model answers has a token of the role {role}",))
    layers = _range(both.mean(0))
    overlaps = [_jaccard(layers, _range(mean)) for mean in resampled_means(both, seed=seed)]
    sureness = sum(overlaps) / len(overlaps)
    doubts = [f"other facts would recommend other layers, with an overlap of {sureness:.2f}"] if sureness < SURE else []
    if len(both) < LEAST_FACTS:
        doubts.append(f"only {len(both)} facts could be traced")
    lost = interval(effects.clean - effects.corrupted, seed=seed)
    if lost.low <= 0:
        doubts.append("corrupting the subjects does not make the answers less probable")
    else:
        carried = interval(both[:, 1], seed=seed)
        best = int(carried.mean.argmax())
        if carried.low[best] < LEAST_SHARE * lost.mean:
            share = float(carried.mean[best] / lost.mean)
            doubts.append(f"no state at the lookup token restores more than {100 * share:.0f}% of the answer")
    other = _stronger_role(effects, role, seed)
    if other is not None:
        doubts.append(f"MLPs at tokens of the role {other} carry more of the answer than at the lookup token ({role})")
    return Recommendation(tuple(layers), sureness, role, tuple(doubts))


def _range(means: Tensor) -> range:
    """The layers to edit from mean effects of MLPs and of hidden states, 2 x layer."""
    mlp, hidden = (_high(mean) for mean in means)
    return range(mlp.start, max(mlp.stop, hidden.stop))


def _high(effect: Tensor) -> range:
    """The layers around the best one whose effect is high."""
    peak = int(effect.argmax())
    high = (effect >= HIGH * effect[peak]).tolist()
    start = stop = peak
    while start > 0 and high[start - 1]:
        start -= 1
    while stop + 1 < len(high) and high[stop + 1]:
        stop += 1
    return range(start, stop + 1)


def _jaccard(one: range, other: range) -> float:
    return len({*one} & {*other}) / len({*one, *other})


def _stronger_role(effects: IndirectEffects, role: Role, seed: int) -> Role | None:
    """Another role whose MLPs restore more, beyond chance, in the layer where those of the lookup token are best."""
    own = effects.of("mlp", role)
    layer = int(own.nanmean(0).argmax())
    stronger: dict[Role, float] = {}
    for other in ROLES:
        more = effects.of("mlp", other)[:, layer] - own[:, layer]
        more = more[~more.isnan()]
        if other != role and len(more) and interval(more, seed=seed).low > 0:
            stronger[other] = float(more.mean())
    return max(stronger, key=lambda other: stronger[other], default=None)
