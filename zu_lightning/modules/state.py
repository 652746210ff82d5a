"""State of a run: targets, edits, and results so far, saved whole in a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zu_lightning.editing.editor import LayerEdit, LayerScores
from zu_lightning.editing.latents import NeutralTargets
from zu_lightning.lm.updates import summed_updates
from zu_lightning.runtime.errors import InputError
from zu_lightning.solvers import LowRankUpdate


class EditKey(NamedTuple):
    """Which edit: the number of the request that asked for it, and the layer."""

    request: int
    layer: int


@dataclass
class RunState:
    """Everything that is needed to resume a run and to report it.

    Attributes:
        targets: The neutral targets, once they are known.
        edits: What was written, by request and layer, in order.
        before: Scores of the unedited model.
        after: Scores of the model as it is now.
        queries: Scores of single queries, ``before`` and ``after``: by metric, a table
            (:mod:`zu_lightning.evaluation.queries`).
        measured: Results by name of the measurement (:mod:`zu_lightning.report.measurements`), then ``before`` and
            ``after``.
        started: When the run began; empty until it is noted.
        identity: Digests and versions by which weights, data, and code at the beginning of the run are recognized.
        seconds: Seconds spent in each phase.
        kept: For each edited layer what later requests need to keep this one in effect: keys, values, and deviations,
            by name; only with a project folder, and only in the first process.
    """

    targets: NeutralTargets | None = None
    edits: dict[EditKey, LayerEdit] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    queries: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: str = ""
    identity: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def layers_left(self, request: int, layers: Sequence[int]) -> list[int]:
        """The layers that a request has not edited yet, the next one first."""
        return [layer for layer in layers if EditKey(request, layer) not in self.edits]

    def updates_of(self, request: int) -> dict[int, LowRankUpdate]:
        """What a request has written, by layer."""
        return {key.layer: edit.update for key, edit in self.edits.items() if key.request == request}

    def updates(self) -> dict[int, LowRankUpdate]:
        """For each edited layer, the sum of all updates."""
        return summed_updates({key.layer: edit.update} for key, edit in self.edits.items())

    def state_dict(self) -> dict[str, Any]:
        """Everything, as plain containers of tensors and numbers.

        All processes have to ask for it; the first one gets the targets of all facts, in main memory, the others those
        of their share.
        """
        edits = {
            tuple(key): {"update": vars(edit.update), "scores": vars(edit.scores)} for key, edit in self.edits.items()
        }
        return vars(self) | {"targets": self.targets and self.targets.state_dict(), "edits": edits}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], device: torch.device) -> "RunState":
        """The state that :meth:`state_dict` gave the first of any number of processes; its tensors on ``device``."""

        def there(values: dict[str, Any]) -> dict[str, Any]:
            return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in values.items()}

        edits = {
            EditKey(*key): LayerEdit(LowRankUpdate(**there(edit["update"])), LayerScores(**edit["scores"]))
            for key, edit in state["edits"].items()
        }
        targets = state["targets"] and NeutralTargets.from_state_dict(state["targets"], device)
        return cls(**state | {"targets": targets, "edits": edits})


def as_text(settings: dict[str, object]) -> dict[str, str]:
    """Settings in a form in which they can be saved and compared."""
    return {name: repr(value) for name, value in settings.items()}


def saved_settings(checkpoint: str) -> dict[str, str]:
    """Settings of the run that wrote a checkpoint, as :func:`as_text` has them; none if that was something else."""
    # Of its tensors, nothing is read.
    content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    settings: dict[str, str] = content.get("settings", {})
    return settings


def check_settings(saved: dict[str, str], here: dict[str, str], path: object) -> None:
    """Refuse a checkpoint of a run with other settings.

    Args:
        saved: Settings of the run that wrote the checkpoint.
        here: Settings of this run, of which all must agree.
        path: The checkpoint, for the message.

    Raises:
        InputError: A setting differs.
    """
    for name, value in here.items():
        if saved.get(name) != value:
            raise InputError(
                "ckpt_path", str(path), f"it was written by a run with another {name} ({saved.get(name)!s:.200}) than "
                f"this one ({value:.200}): start without it, or with the settings of that run.",
            )  # fmt: skip
