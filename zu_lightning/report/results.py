"""Results of a run: the schema of ``metrics.json``."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zu_lightning.editing.editor import LayerScores
from zu_lightning.runtime.files import read_json, replacing

FILE_NAME = "metrics.json"


def without_nan(values: Any) -> Any:
    """Nested dictionaries and lists with ``None`` for NaN and infinity, which JSON does not have."""
    if isinstance(values, dict):
        return {name: without_nan(value) for name, value in values.items()}
    if isinstance(values, list):
        return [without_nan(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


@dataclass(frozen=True)
class TargetScores:
    """Effect of the neutral targets, with z* patched in directly.

    Attributes:
        reachable: Percent of the facts whose answer is gone: the upper bound for any edit.
        probability: Mean probability of the neutral answer, 0..1.
    """

    reachable: float
    probability: float


@dataclass(frozen=True)
class FactResult:
    """Scores of one of the facts to forget.

    Attributes:
        id: Its name.
        prompt: Its prompt; ``None`` in a report without texts.
        target: Its answer; ``None`` in a report without texts.
        before: Scores of the unedited model: ``efficacy``, ``generalization``, and others that there are queries for,
            in percent of the fact's own queries, ``probability``, 0..1, and ``leak_nats``.
        after: The same of the edited model.
    """

    id: str
    prompt: str | None
    target: str | None
    before: dict[str, float]
    after: dict[str, float]


@dataclass(frozen=True)
class Completion:
    """Completions of a prompt.

    Attributes:
        prompt: The prompt.
        before: That of the unedited model; ``None`` if it was not measured.
        after: That of the edited model.
        forget: Whether the prompt is that of a fact to forget.
    """

    prompt: str
    before: str | None
    after: str
    forget: bool


@dataclass(frozen=True)
class Results:
    """Results of a run.

    Attributes:
        before: Scores of the unedited model: percent for exact matches, 0..1 for probabilities, and the perplexity.
        after: The same of the edited model.
        facts: Number of facts to forget.
        seconds: Seconds spent in each phase.
        peak_memory_gib: Peak memory of the model's device, or of this process if that is the CPU.
        model: Where the model came from.
        method: Name and options of the method.
        targets: Scores of the neutral targets; ``None`` for a method without them.
        layers: Effect of the edit on each edited layer.
        forgotten: Ids of the facts to forget.
        retained: Ids of the facts that were only measured.
        attacks: For each score of an attack its mean in the models ``base``, ``edited``, and ``gold``, and the ``gap``
            to gold with the ``low`` and ``high`` end of its interval, and what is recovered by ``chance``.
        comparisons: Numbers that compare with gold as a whole, by name.
        verdict: Conclusion from the attacks, in one sentence; ``None`` without attacks.
        intervals: The 95% intervals of scores ``before`` and ``after``, by name, by a bootstrap over facts.
        per_fact: Scores of each of the facts to forget.
        completions: Sample completions.
        identity: Versions, and digests of weights and data, by name.
        earlier: Scores of the facts of previous requests, ``before`` and ``after`` this one, by number of the request.
        estimated_seconds: What was expected of ``seconds`` before the run began; empty if it was resumed.
        started: When the run began, in ISO 8601 and UTC.
        finished: When its results were written.
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
    retained: list[str] = field(default_factory=list)
    attacks: dict[str, dict[str, float]] = field(default_factory=dict)
    comparisons: dict[str, float] = field(default_factory=dict)
    verdict: str | None = None
    intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    per_fact: list[FactResult] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    identity: dict[str, str] = field(default_factory=dict)
    earlier: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    estimated_seconds: dict[str, float] = field(default_factory=dict)
    started: str = ""
    finished: str = ""

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
        return read_json(folder / FILE_NAME, cls._parsed)

    @classmethod
    def _parsed(cls, content: Any) -> "Results":
        content["targets"] = content["targets"] and TargetScores(**content["targets"])
        content["layers"] = {int(layer): LayerScores(**scores) for layer, scores in content["layers"].items()}
        content["per_fact"] = [FactResult(**fact) for fact in content["per_fact"]]
        content["completions"] = [Completion(**one) for one in content["completions"]]
        content["intervals"] = {
            when: {name: (low, high) for name, (low, high) in scores.items()}
            for when, scores in content["intervals"].items()
        }
        return cls(**content)
