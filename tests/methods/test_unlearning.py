"""From facts to an edited model without Lightning: what is resolved on the way, and what is warned about."""

import pytest
import torch

from tests.conftest import TEXTS, update_for
from zu_lightning import EditableLM, Fact, LatentOptions, LayerProblem, Memit, TargetOptions, unlearn, write_update


def test_the_end_of_the_text_can_be_the_neutral_target(lm: EditableLM, facts: list[Fact]) -> None:
    before = [lm.weight(0).clone() for _ in range(2)]
    found = []
    for answer in ("<eos>", "</s>", "<pad>"):
        lm.set_weight(0, before[0])
        options = TargetOptions(neutral_target=answer, latents=LatentOptions(steps=2), optimize_values=False)
        found.append(unlearn(lm, facts[:1], TEXTS[2:3] * 4, [0], Memit(), options).targets.optimum)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("dtype", "scale", "warned"), [("bfloat16", 1e-4, True), ("bfloat16", 1.0, False), ("float32", 1e-4, False)]
)
def test_what_rounding_takes_from_an_update_is_warned_about(
    lm: EditableLM, caplog: pytest.LogCaptureFixture, dtype: str, scale: float, warned: bool
) -> None:
    lm.model.to(dtype=getattr(torch, dtype))  # type: ignore[call-arg]
    update, generator = update_for(lm, 0), torch.Generator().manual_seed(0)
    update = type(update)(scale * update.left, update.right)
    keys, outputs = (torch.randn(size, 2, generator=generator, dtype=torch.float64) for size in (40, 16))
    edit = write_update(lm, LayerProblem(0, keys, outputs, outputs, keys @ keys.mT), update)
    assert (edit.scores.stored_error > 0.1) == warned
    assert ("layer 0: rounding to the weight's bfloat16 changed the update" in caplog.text) == warned
    assert ("float32" in caplog.text) == warned
