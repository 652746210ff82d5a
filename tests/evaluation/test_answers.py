"""Metrics of answers: means over everything that was seen, however it was cut into batches and processes."""

import pytest
import torch
from torch import Tensor

from zu_lightning.evaluation.answers import AnswerMetric, Efficacy, Generalization, MultiHop, Retain, Specificity

Batch = tuple[Tensor, Tensor, Tensor, int]


def batch(*answers: tuple[list[int], list[int]]) -> Batch:
    """Answers as pairs: the ids that greedy decoding gives, and the true ones."""
    given = [token for decoded, _ in answers for token in decoded]
    tokens = [token for _, true in answers for token in true]
    owner = [i for i, (_, true) in enumerate(answers) for _ in true]
    return 5 * torch.eye(4)[given], torch.tensor(tokens), torch.tensor(owner), len(answers)


RIGHT, WRONG, HALF = ([1, 2], [1, 2]), ([3], [0]), ([1, 3], [1, 2])


def test_scores_are_means_over_answers() -> None:
    metric = Efficacy()
    metric.update(*batch(RIGHT, WRONG, HALF, RIGHT))
    scores = metric.compute()
    assert scores["efficacy"].item() == 50
    assert scores["efficacy_token_accuracy"].item() == pytest.approx(100 * (1 + 0 + 0.5 + 1) / 4)
    assert 0.4 < scores["efficacy_probability"].item() < 0.6


def test_batches_do_not_matter() -> None:
    together, apart = Retain(), Retain()
    together.update(*batch(RIGHT, WRONG, HALF))
    for answer in (HALF, RIGHT, WRONG):
        apart.update(*batch(answer))
    expected = {name: value.item() for name, value in together.compute().items()}
    assert {name: value.item() for name, value in apart.compute().items()} == pytest.approx(expected)


def test_nothing_is_reported_of_nothing() -> None:
    metric = Specificity()
    metric.update(*batch(RIGHT))
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):  # torchmetrics, to whoever calls by hand
        assert metric.compute() == {}


@pytest.mark.parametrize(
    ("kind", "name", "kept"),
    [
        (Efficacy, "efficacy", False),
        (Generalization, "generalization", False),
        (MultiHop, "multi_hop", False),
        (Specificity, "specificity", True),
        (Retain, "retain", True),
    ],
)
def test_every_metric_reports_under_its_name_and_says_whether_high_is_good(
    kind: type[AnswerMetric], name: str, kept: bool
) -> None:
    metric = kind()
    metric.update(*batch(RIGHT))
    assert set(metric.compute()) == {name, f"{name}_token_accuracy", f"{name}_probability"}
    assert metric.higher_is_better is kept
