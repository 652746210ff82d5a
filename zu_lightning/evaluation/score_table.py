"""The scores of an evaluation: names, order, and meaning, for tables, the report, plots, and metrics alike."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Score:
    """A score that is measured before and after an edit.

    Attributes:
        name: Its key in ``metrics.json``.
        head: Short head of its column in a table of methods.
        meaning: What it measures, in plain words.
        concerns: Whether it is about what to ``forget``, and should fall, or about what to ``keep``, and should stay.
        good_when: Whether a ``low`` or a ``high`` value is good.
        unit: ``percent`` of answers that are exactly right, a ``probability``, or a ``perplexity``.
    """

    name: str
    head: str
    meaning: str
    concerns: Literal["forget", "keep"]
    good_when: Literal["low", "high"]
    unit: Literal["percent", "probability", "perplexity"] = "percent"

    @property
    def digits(self) -> int:
        """Decimals in the report."""
        return 1 if self.unit == "percent" else 3


SCORES = (
    Score("efficacy", "Eff.", "facts to forget that it still answers", "forget", "low"),
    Score("generalization", "Gen.", "facts to forget that it still answers when asked in other words", "forget", "low"),
    Score("specificity", "Spe.", "similar facts about other subjects that it answers", "keep", "high"),
    Score("multi_hop", "Multi-hop", "multi-hop questions about facts to forget that it still answers", "forget", "low"),
    Score("retain", "Ret.", "held-out facts to keep that it answers; the method never saw them", "keep", "high"),
    Score("same_subject", "Same", "other facts about the same subjects that it answers", "keep", "high"),
    Score("protected", "Prot.", "facts to keep that the method was given and that it answers", "keep", "high"),
    Score(
        "efficacy_probability", "p(answer)", "mean probability of the answers to forget", "forget", "low", "probability"
    ),
    Score("perplexity", "PPL", "perplexity of held-out text", "keep", "low", "perplexity"),
)
"""The scores that tables show, in this order."""

SCORE = {score.name: score for score in SCORES}
"""The same by name."""
