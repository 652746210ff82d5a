"""Scores of answers and of text, worked out by hand."""

import doctest
import math

import pytest
import torch

from zu_lightning.evaluation import functional
from zu_lightning.evaluation.functional import answer_scores, token_nll


def test_the_examples_in_docstrings_are_right() -> None:
    results = doctest.testmod(functional)
    assert results.attempted > 0
    assert results.failed == 0


def test_an_answer_is_exact_only_if_all_its_tokens_are_and_parts_get_credit() -> None:
    logits = torch.eye(4)[[1, 2, 3, 0]] * 5
    scores = answer_scores(logits, torch.tensor([1, 0, 3, 0]), torch.tensor([0, 0, 1, 1]), 2)
    assert scores.exact.tolist() == [False, True]
    assert scores.token_accuracy.tolist() == [0.5, 1.0]


def test_the_probability_of_an_answer_is_the_product_over_its_tokens() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    scores = answer_scores(probabilities.log(), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), 2)
    assert scores.probability.tolist() == pytest.approx([0.5 * 0.8, 0.2])


def test_tokens_of_answers_may_come_in_any_order() -> None:
    logits = torch.eye(3)
    scores = answer_scores(logits, torch.tensor([0, 2, 2]), torch.tensor([1, 0, 1]), 2)
    assert scores.exact.tolist() == [False, True]
    assert scores.token_accuracy.tolist() == [0.0, 1.0]


def test_wrong_shapes_are_refused_with_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"expected to be \(tokens, vocabulary\) .* but got \(2, 3, 4\)"):
        answer_scores(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), 1)


def test_the_negative_log_likelihood_is_in_nats() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    found = token_nll(logits, torch.tensor([1, 1]))
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([-math.log(0.25), -math.log(0.8)])


def test_margin_is_the_least_lead_of_an_answers_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, tokens = torch.randn(6, 9, generator=generator), torch.randint(9, (6,), generator=generator)
    tokens[:3] = logits[:3].argmax(1)
    scores = answer_scores(logits, tokens, torch.tensor([0, 0, 1, 1, 2, 2]), 3)
    log_p = logits.log_softmax(1)
    leads = [
        (log_p[i, token] - max(p for j, p in enumerate(log_p[i].tolist()) if j != token)).item()
        for i, token in enumerate(tokens.tolist())
    ]
    torch.testing.assert_close(scores.margin.tolist(), [min(leads[i : i + 2]) for i in (0, 2, 4)], rtol=0, atol=1e-5)
    assert torch.equal(scores.exact, scores.margin > 0)
