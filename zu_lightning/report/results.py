"""The results of a run: the schema of ``metrics.json``, in one place."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from zu_lightning.errors import InputError
from zu_lightning.files import replacing
from zu_lightning.methods.unlearning import LayerScores

FILE_NAME = "metrics.json"

HEADLINES = (
    "efficacy",
    "generalization",
    "specificity",
    "multi_hop",
    "retain",
    "same_subject",
    "protected",
    "efficacy_probability",
    "perplexity",
)
"""The scores that a table shows, in this order."""


@dataclass(frozen=True)
class TargetScores:
    """How well the neutral targets work, with z* inserted directly.

    Attributes:
        reachable: Percent of the facts whose answer is gone: the ceiling of every rule.
        probability: Mean probability of the neutral answer, 0..1.
    """

    reachable: float
    probability: float


@dataclass(frozen=True)
class Results:
    """What a run measured.

    Attributes:
        before: Scores of the unedited model: percent for exact matches, 0..1 for probabilities, and the perplexity.
        after: The same of the edited model.
        facts: Number of facts to forget.
        seconds: Seconds spent in each phase.
        peak_memory_gib: Peak memory of the model's device, or of this process if that is the CPU.
        model: Where the model came from.
        method: Name and options of the method.
        targets: Scores of the neutral targets; ``None`` for a method without them.
        layers: For each edited layer, what the edit did.
        forgotten: Ids of the facts to forget.
        attacks: For each score of an attack its mean in the models ``base``, ``edited``, and ``gold``, and the ``gap``
            to gold with the ``low`` and ``high`` end of its interval.
        comparisons: Numbers that compare with gold as a whole, by name.
        verdict: One sentence on what the attacks found; ``None`` if there were none.
    """

    before: dict[str, float]
    after: dict[str, float]
    facts: int
    seconds: dict[str, float]
    peak_memory_gib: float
    model: str
    method: dict[str, object]
    targets: TargetScores | None
    layers: dict[int, LayerScores]
    forgotten: list[str]
    attacks: dict[str, dict[str, float]] = field(default_factory=dict)
    comparisons: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None

    def write(self, folder: Path) -> Path:
        """Write ``metrics.json`` into a folder; its path."""
        with replacing(folder / FILE_NAME) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return folder / FILE_NAME

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """The results in a run's folder.

        Raises:
            InputError: There are none, or they follow another schema.
        """
        path = folder / FILE_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["targets"] = content["targets"] and TargetScores(**content["targets"])
            content["layers"] = {int(layer): LayerScores(**scores) for layer, scores in content["layers"].items()}
            return cls(**content)
        except OSError as error:
            raise InputError("folder", str(folder), f"it holds no {FILE_NAME} that can be read ({error}).") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError("folder", str(folder), f"its {FILE_NAME} follows another schema ({error}).") from error

    def table(self) -> str:
        """The headline scores, before and after, as text."""
        names = [name for name in HEADLINES if name in self.after]
        head = f"{'':8}" + "".join(f"{name:>{len(name) + 2}}" for name in names)
        rows = [
            f"{when:8}" + "".join(f"{_shown(scores.get(name)):>{len(name) + 2}}" for name in names)
            for when, scores in (("before", self.before), ("after", self.after))
        ]
        return "\n".join(["", head, *rows, *self._attack_table()])

    def _attack_table(self) -> list[str]:
        """Every score of an attack, in percent, and the verdict."""
        if not self.attacks:
            return []
        columns = ("base", "edited", "gold", "gap", "low", "high")
        shown = [name for name in columns if any(name in scores for scores in self.attacks.values())]
        lines = ["", f"{'attack (percent)':36}" + "".join(f"{name:>8}" for name in shown)]
        for name, scores in self.attacks.items():
            cells = (f"{100 * scores[column]:8.1f}" if column in scores else f"{'-':>8}" for column in shown)
            lines.append(f"{name:36}" + "".join(cells))
        return [*lines, "", self.verdict or ""]


def _shown(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"
