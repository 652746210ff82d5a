"""Rounded weights: what rounding gives, that it is undone, and that an adapter stays out of it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import random, random_lm, update_for
from zu_lightning import EditableLM, LowRankUpdate
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.quantization import NF4_LEVELS, Bits, Quantization, int8, nf4, rounded
from zu_lightning.lm.architecture import name_of
from zu_lightning.lm.updates import apply_update


def weights(lm: EditableLM) -> dict[str, Tensor]:
    """A copy of all weights, by name."""
    return {name: value.clone() for name, value in lm.model.state_dict().items()}


def test_int8_gives_each_row_127_steps_to_either_side() -> None:
    weight = torch.tensor([[12.7, 0.04, -0.06, 1.0], [-127.0, 0.4, 0.6, 100.2], [0.0, 0.0, 0.0, 0.0]])
    expected = torch.tensor([[12.7, 0.0, -0.1, 1.0], [-127.0, 0.0, 1.0, 100.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(int8(weight), expected)


def test_nf4_gives_each_block_the_nearest_level() -> None:
    weight = torch.zeros(2, 64)
    weight[0, :5] = torch.tensor([-2.0, 1.4, 0.07, 0.09, 1.8])  # -1, 0.7, 0.035, 0.045, 0.9 of the largest
    weight[1, :3] = torch.tensor([0.5, -0.05, 0.4])  # 1, -0.1, 0.8 of the largest
    expected = torch.zeros(2, 64)
    expected[0, :5] = 2 * torch.tensor([-1.0, 0.7229568362, 0.0, 0.0795802996, 1.0])
    expected[1, :3] = 0.5 * torch.tensor([1.0, -0.0910500363, 0.7229568362])
    torch.testing.assert_close(nf4(weight), expected)


def test_blocks_of_nf4_go_on_over_the_ends_of_rows() -> None:
    weight = random(6, 40, seed=0).float()
    expected = torch.cat([nf4(block[None])[0] for block in torch.split(weight.flatten(), 64)]).view(6, 40)
    torch.testing.assert_close(nf4(weight), expected, rtol=0, atol=0)


def test_the_levels_of_nf4_are_quantiles_of_the_normal_distribution() -> None:
    # bitsandbytes.functional.create_normal_map, arXiv 2305.14314
    offset = 0.9677083
    positive = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    negative = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    levels = torch.cat([negative, torch.zeros(1), positive.flip(0)]) / positive.max()
    torch.testing.assert_close(torch.tensor(NF4_LEVELS, dtype=torch.float64), levels, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("architecture", "bits"), [("llama-tied", "int8"), ("gpt2", "nf4"), ("opt", "int8")])
def test_rounding_is_undone_to_the_bit(architecture: str, bits: Bits) -> None:
    lm = random_lm(architecture)
    lm.model.bfloat16()
    before = weights(lm)
    with rounded(lm, bits, {1: update_for(lm, 1)}):
        changed = {name for name, weight in weights(lm).items() if not torch.equal(weight, before[name])}
    assert all(torch.equal(weight, before[name]) for name, weight in weights(lm).items())
    assert {f"{lm.weight_name(layer)}.weight" for layer in range(3)} <= changed
    assert all(before[name].dim() == 2 and name.startswith(name_of(lm.model, lm.layers)) for name in changed)


def test_rounding_is_undone_when_the_attack_fails(lm: EditableLM) -> None:
    before = weights(lm)
    with pytest.raises(ZeroDivisionError), rounded(lm, "nf4", {}):
        raise ZeroDivisionError
    misshapen = LowRankUpdate(torch.ones(3, 1), torch.ones(1, 3))
    with pytest.raises(RuntimeError), rounded(lm, "nf4", {1: misshapen}):
        pytest.fail("an update of another shape was taken out")
    assert all(torch.equal(weight, before[name]) for name, weight in weights(lm).items())


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_rows_are_those_of_outputs(architecture: str) -> None:
    lm = random_lm(architecture)
    expected = int8(lm.weight(0))
    with rounded(lm, "int8", {}):
        torch.testing.assert_close(lm.weight(0), expected, rtol=0, atol=0)


def test_an_adapter_is_put_on_top_of_rounded_weights_as_it_is() -> None:
    lm = random_lm("gpt2")
    before, update = lm.weight(1).clone(), update_for(lm, 1)
    apply_update(lm, 1, update)
    with rounded(lm, "nf4", {1: update}):
        torch.testing.assert_close(lm.weight(1), nf4(before) + update.dense().float(), rtol=0, atol=1e-5)


def test_a_model_that_knows_still_does_with_8_bits(base: EditableLM, context: AttackContext) -> None:
    before = weights(base)
    scores = Quantization(bits="int8")(base, context)
    assert {name: values.tolist() for name, values in scores.items()} == {
        "quantization_int8_merged": [1.0] * 4,
        "quantization_int8_merged_paraphrases": [1.0] * 4,
    }
    assert all(torch.equal(weight, before[name]) for name, weight in weights(base).items())


def test_an_edit_of_less_than_half_a_step_is_undone_by_rounding_but_not_in_an_adapter(lm: EditableLM) -> None:
    before = int8(lm.weight(1))
    # Columns that hold the largest weight of a row, which sets its step, stay the same.
    columns = torch.where(before.abs() == before.abs().amax(1, keepdim=True), 0.0, 1.0).prod(0, keepdim=True)
    edit = LowRankUpdate(0.3 / 127 * before.abs().amax(1, keepdim=True), columns)
    lm.set_weight(1, before)
    apply_update(lm, 1, edit)
    with rounded(lm, "int8", {}):
        torch.testing.assert_close(lm.weight(1), before)
    with rounded(lm, "int8", {1: edit}):
        torch.testing.assert_close(lm.weight(1), before + edit.dense())


def test_an_adapter_has_scores_of_its_own(base: EditableLM, context: AttackContext) -> None:
    edit = {0: LowRankUpdate(torch.zeros(base.weight(0).shape[0], 1), torch.zeros(1, base.weight(0).shape[1]))}
    few = replace(context, facts=[replace(context.facts[0], paraphrases=())])
    scores = Quantization(variant="adapter", updates=edit)(base, few)
    assert scores["quantization_nf4_adapter"] == 1
    assert scores["quantization_nf4_adapter_paraphrases"].isnan().all(), "there are no paraphrases"
