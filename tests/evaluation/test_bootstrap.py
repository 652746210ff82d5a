"""The bootstrap against SciPy's."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from tests.conftest import random
from zu_lightning.evaluation.bootstrap import interval, resampled_means


def ratio(values: NDArray[np.float64], counts: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.asarray(values.sum(axis) / counts.sum(axis))


@pytest.mark.parametrize("counts", [torch.ones(60), torch.arange(1, 61) % 5 + 1], ids=["one each", "several"])
def test_an_interval_is_that_of_scipy_up_to_sampling_error(counts: Tensor) -> None:
    values = random(60, seed=1) * counts + counts
    found = interval(values, counts)
    reference = stats.bootstrap(
        (values.numpy(), counts.numpy()), ratio, paired=True, n_resamples=20_000, method="percentile", rng=1
    ).confidence_interval
    width = reference.high - reference.low
    assert found.mean.item() == pytest.approx(float(values.sum() / counts.sum()))
    assert [found.low.item(), found.high.item()] == pytest.approx([reference.low, reference.high], abs=0.05 * width)


def test_facts_that_say_nothing_are_left_out() -> None:
    values = random(20, 3, seed=2)
    values[5:, 1], values[:, 2] = torch.nan, torch.nan
    found = interval(values)
    assert found.mean[1] == values[:5, 1].mean()
    assert found.low[1] < found.mean[1] < found.high[1]
    assert found.mean.isnan().tolist() == found.low.isnan().tolist() == [False, False, True]
    assert interval(values[:0]).low.isnan().all()


def test_the_same_seed_draws_the_same_facts() -> None:
    values = random(10, seed=3)
    assert torch.equal(resampled_means(values, seed=1), resampled_means(values, seed=1))
    assert not torch.equal(resampled_means(values, seed=1), resampled_means(values, seed=2))
