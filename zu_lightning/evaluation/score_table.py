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
        good_when: Whether a ``low`` or a ``high`` value is good, or one near ``zero``.
        unit: ``percent`` of answers that are exactly right, ``nats``, or a ``perplexity``.
        sure_of: For a score over the queries that the model before is sure of, the score over all of them.
    """

    name: str
    head: str
    meaning: str
    concerns: Literal["forget", "keep"]
    good_when: Literal["low", "high", "zero"]
    unit: Literal["percent", "nats", "perplexity"] = "percent"
    sure_of: str | None = None

    @property
    def digits(self) -> int:
        """Decimals in the report."""
        return {"percent": 1, "nats": 2, "perplexity": 3}[self.unit]


SURE = 1.0
"""A model is sure of an answer that it gives with a margin of at least so many nats: every token is then at least e
times as likely as any other one. An answer with less can be lost to any disturbance, and says little about an edit."""

SCORES = (
    Score("efficacy", "Eff.", "facts to forget that it still answers", "forget", "low"),
    Score("generalization", "Gen.", "facts to forget that it still answers when asked in other words", "forget", "low"),
    Score("specificity", "Spe.", "similar facts about other subjects that it answers", "keep", "high"),
    Score(
        "specificity_sure",
        "Spe. sure",
        "the same, of those that it was sure of before",
        "keep",
        "high",
        sure_of="specificity",
    ),
    Score("multi_hop", "Multi-hop", "multi-hop questions about facts to forget that it still answers", "forget", "low"),
    Score("retain", "Ret.", "held-out facts to keep that it answers; the method never saw them", "keep", "high"),
    Score(
        "retain_sure", "Ret. sure", "the same, of those that it was sure of before", "keep", "high", sure_of="retain"
    ),
    Score("same_subject", "Same", "other facts about the same subjects that it answers", "keep", "high"),
    Score("protected", "Prot.", "facts to keep that the method was given and that it answers", "keep", "high"),
    Score(
        "leak_nats",
        "Leak",
        "how much likelier the answer is than for a made-up name, in nats",
        "forget",
        "zero",
        "nats",
    ),
    Score("leak_nats_worst", "Worst leak", "the same of the fact where it is most", "forget", "zero", "nats"),
    Score("perplexity", "PPL", "perplexity of held-out text", "keep", "low", "perplexity"),
)
"""The scores that tables show, in this order."""

SCORE = {score.name: score for score in SCORES}
"""The same by name."""
