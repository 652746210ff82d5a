"""From facts to an edited model without Lightning: what is resolved on the way, and what is warned about."""

import pytest
import torch

from tests.conftest import TEXTS, update_for
from zu_lightning import (
    NPO,
    EditableLM,
    EditingModule,
    Erase,
    Fact,
    FineTuning,
    GradientModule,
    InputError,
    LatentOptions,
    LayerProblem,
    Memit,
    Method,
    Request,
    RetainText,
    UnlearnModule,
    ZeroUnlearnGD,
    unlearn,
    write_update,
)


def requested(facts: list[Fact]) -> Request:
    return Request(facts, RetainText(TEXTS[2:3] * 4))


def test_the_end_of_the_text_can_be_the_neutral_target(lm: EditableLM, facts: list[Fact]) -> None:
    before = [lm.weight(0).clone() for _ in range(2)]
    found = []
    for answer in ("<eos>", "</s>", "<pad>"):
        lm.set_weight(0, before[0])
        method = Memit(latents=LatentOptions(steps=2))
        found.append(unlearn(lm, requested(facts[:1]), method, [0], answer).targets.optimum)
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


def test_a_true_answer_is_no_neutral_target(lm: EditableLM, facts: list[Fact]) -> None:
    with pytest.raises(
        InputError, match=r"^neutral_target is ' baker': it is the true answer of fact '0' \('Ada Novak"
    ):
        unlearn(lm, requested(facts), Memit(), [0], " baker")


@pytest.mark.parametrize(
    ("module", "teaches"),
    [
        (EditingModule(Memit()), True),
        (EditingModule(Erase()), False),
        (GradientModule(FineTuning()), True),
        (GradientModule(NPO()), False),
    ],
    ids=["word", "reference", "FT", "NPO"],
)
def test_the_neutral_target_matters_to_methods_that_teach_it(module: UnlearnModule, teaches: bool) -> None:
    assert module.method.teaches_neutral_target == teaches


def test_a_projection_of_zeros_is_refused(lm: EditableLM, facts: list[Fact]) -> None:
    lm.set_weight(1, torch.zeros_like(lm.weight(1)))
    with pytest.raises(
        InputError, match=r"^layers is \[0, 1\]: the output projection of layer 1 holds nothing but zeros"
    ):
        unlearn(lm, requested(facts), Memit(), [0, 1])


@pytest.mark.parametrize("method", [NPO(), ZeroUnlearnGD(solve="descent")], ids=["gradient", "descent"])
def test_a_method_that_trains_is_refused_with_the_command(lm: EditableLM, facts: list[Fact], method: Method) -> None:
    with pytest.raises(InputError, match=rf"method is '{method.name}': it trains.*--method {method.name}"):
        unlearn(lm, requested(facts), method, [0])
