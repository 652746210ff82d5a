"""Perplexity against torchmetrics, and where probabilities underflow."""

import pytest
import torch
from torchmetrics.text import Perplexity as ReferencePerplexity

from zu_lightning.evaluation.functional import token_nll
from zu_lightning.evaluation.perplexity import Perplexity


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


def test_nothing_is_reported_of_nothing() -> None:
    with pytest.warns(UserWarning, match="before the ``update`` method"):  # torchmetrics, to whoever calls by hand
        assert Perplexity().compute() == {}
