"""Writing updates into weights, on every architecture."""

import pytest
import torch

from tests.conftest import batch_of, update_for
from zu_lightning import EditableLM, LowRankUpdate, apply_update
from zu_lightning.lm.updates import edited, summed_update, summed_updates


def test_an_edit_changes_its_weight_and_no_other(any_lm: EditableLM) -> None:
    before = {name: value.clone() for name, value in any_lm.model.state_dict().items()}
    update = update_for(any_lm, 1)
    old = any_lm.weight(1).double()
    report = apply_update(any_lm, 1, update)
    changed = {name for name, value in any_lm.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{any_lm.weight_name(1)}.weight"}
    assert torch.allclose(any_lm.weight(1).double(), old + update.dense(), atol=1e-6)
    (record,) = any_lm.record(batch_of(any_lm), [any_lm.projections[1]])
    bias = any_lm.bias(1)
    expected = record.input @ (old + update.dense()).float().T + (0.0 if bias is None else bias)
    assert torch.allclose(record.output, expected, atol=1e-5)
    assert report.rank == 2
    assert report.relative_norm == pytest.approx((update.dense().norm() / old.norm()).item())
    assert report.stored_error < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_edit_is_rounded_once_and_reports_what_rounding_took_away(lm: EditableLM, dtype: torch.dtype) -> None:
    lm.model.to(dtype=dtype)  # type: ignore[call-arg]
    update = update_for(lm, 0)
    exact = lm.weight(0).double() + update.dense()
    report = apply_update(lm, 0, update)
    assert torch.equal(lm.weight(0), exact.to(dtype))
    lost = (lm.weight(0).double() - exact).norm() / update.dense().norm()
    assert report.stored_error == pytest.approx(lost.item())
    assert report.stored_error > 1e-4


def test_an_update_of_zero_has_no_error(lm: EditableLM) -> None:
    update = update_for(lm, 0)
    report = apply_update(lm, 0, LowRankUpdate(torch.zeros_like(update.left), update.right))
    assert (report.relative_norm, report.stored_error) == (0.0, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused_before_the_weight_is_touched(lm: EditableLM, bad: float) -> None:
    before = lm.weight(0).clone()
    update = update_for(lm, 0)
    update.left[0, 0] = bad
    with pytest.raises(ValueError, match="layer 0 holds NaN or infinite entries: the weight is unchanged"):
        apply_update(lm, 0, update)
    assert torch.equal(lm.weight(0), before)


def test_several_updates_are_one(lm: EditableLM) -> None:
    updates = [update_for(lm, layer, rank) for layer, rank in ((0, 1), (1, 2), (2, 3))]
    together = summed_update(updates)
    assert together.rank == 6
    expected = sum((update.dense() for update in updates), torch.zeros(16, 40, dtype=torch.float64))
    assert torch.allclose(together.dense(), expected, atol=1e-12)


def test_updates_of_a_model_add_up_layer_by_layer_and_are_there_for_a_while(lm: EditableLM) -> None:
    one, two = update_for(lm, 0), update_for(lm, 2)
    total = summed_updates([{2: two, 0: one}, {2: two}])
    assert list(total) == [0, 2]
    before = [lm.weight(layer).double().clone() for layer in range(3)]
    with edited(lm, total):
        added = [lm.weight(layer).double() - before[layer] for layer in range(3)]
    expected = [one.dense(), torch.zeros_like(one.dense()), 2 * two.dense()]
    assert all(torch.allclose(found, known, atol=1e-6) for found, known in zip(added, expected, strict=True))
    assert all(torch.equal(lm.weight(layer).double(), before[layer]) for layer in range(3))
