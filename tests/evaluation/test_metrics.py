"""Metrics: means over everything that was seen, in any batches and processes."""

import pytest
import torch
from torchmetrics.text import Perplexity as ReferencePerplexity

from zu_lightning.evaluation.functional import AnswerScores, answer_scores, token_nll
from zu_lightning.evaluation.metrics import AnswerMetric, Perplexity


def batch(*answers: tuple[list[int], list[int]]) -> AnswerScores:
    """Scores of answers as pairs: the ids that greedy decoding gives, and the true ones."""
    given = [token for decoded, _ in answers for token in decoded]
    tokens = [token for _, true in answers for token in true]
    owner = [i for i, (_, true) in enumerate(answers) for _ in true]
    return answer_scores(5 * torch.eye(4)[given], torch.tensor(tokens), torch.tensor(owner), len(answers))


RIGHT, WRONG, HALF = ([1, 2], [1, 2]), ([3], [0]), ([1, 3], [1, 2])


def test_scores_are_means_over_answers() -> None:
    metric = AnswerMetric("efficacy")
    metric.update(batch(RIGHT, WRONG, HALF, RIGHT))
    scores = metric.compute()
    assert set(scores) == {"efficacy", "efficacy_token_accuracy", "efficacy_probability"}
    assert scores["efficacy"].item() == 50
    assert scores["efficacy_token_accuracy"].item() == pytest.approx(100 * (1 + 0 + 0.5 + 1) / 4)
    assert 0.4 < scores["efficacy_probability"].item() < 0.6


def test_batches_do_not_matter() -> None:
    together, apart = AnswerMetric("retain"), AnswerMetric("retain")
    together.update(batch(RIGHT, WRONG, HALF))
    for answer in (HALF, RIGHT, WRONG):
        apart.update(batch(answer))
    expected = {name: value.item() for name, value in together.compute().items()}
    assert {name: value.item() for name, value in apart.compute().items()} == pytest.approx(expected)


def test_nothing_is_reported_of_nothing() -> None:
    metric = AnswerMetric("specificity")
    metric.update(batch(RIGHT))
    metric.reset()
    with pytest.warns(UserWarning, match="before the ``update`` method"):  # torchmetrics, to whoever calls by hand
        assert metric.compute() == {}


def test_perplexity_is_that_of_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(50, 11, generator=generator), torch.randint(0, 11, (50,), generator=generator)
    ours, reference = Perplexity(), ReferencePerplexity()
    for share in (slice(0, 7), slice(7, 50)):
        ours.update(token_nll(logits[share], tokens[share]))
    reference.update(logits[None], tokens[None])
    assert ours.compute()["perplexity"].item() == pytest.approx(reference.compute().item(), rel=1e-5)


def test_perplexity_stays_finite_where_probabilities_underflow() -> None:
    metric = Perplexity()
    metric.update(token_nll(torch.tensor([[0.0, 200.0]]), torch.tensor([0])))
    assert torch.isfinite(metric.compute()["perplexity"])


def test_no_text_has_no_perplexity() -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):  # torchmetrics, to whoever calls by hand
        assert Perplexity().compute() == {}
