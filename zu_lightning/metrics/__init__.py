"""What unlearning is measured by: a functional core and thin torchmetrics classes."""

from zu_lightning.metrics.answers import (
    AnswerMetric,
    Efficacy,
    Generalization,
    MultiHop,
    Protected,
    Retain,
    SameSubject,
    Specificity,
)
from zu_lightning.metrics.functional import AnswerScores, answer_scores, negative_log_likelihood
from zu_lightning.metrics.perplexity import Perplexity

__all__ = [
    "AnswerMetric",
    "AnswerScores",
    "Efficacy",
    "Generalization",
    "MultiHop",
    "Perplexity",
    "Protected",
    "Retain",
    "SameSubject",
    "Specificity",
    "answer_scores",
    "negative_log_likelihood",
]
