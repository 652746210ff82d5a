"""Reading projections and logits, on every architecture."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import TEXTS, batch_of, random_lm
from zu_lightning import EditableLM, InputError
from zu_lightning.lm import hooks
from zu_lightning.lm.tokens import PaddedTokens


def whole_logits(lm: EditableLM, tokens: PaddedTokens) -> Tensor:
    """rows x length x vocabulary, by the model's own forward pass."""
    with torch.no_grad():
        logits: Tensor = lm.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).logits
    return logits


def test_a_projections_output_is_its_weight_times_the_key(any_lm: EditableLM) -> None:
    for layer, projection in enumerate(any_lm.projections):
        (record,) = any_lm.record(batch_of(any_lm), [projection])
        bias = any_lm.bias(layer)
        assert any_lm.weight(layer).shape == (16, 40)
        value = record.input @ any_lm.weight(layer).T + (0.0 if bias is None else bias)
        assert torch.allclose(value, record.output, atol=1e-6)


def key_by_hand(mlp: Any, hidden: Tensor) -> Tensor:
    """What the MLP's output projection receives, written out for each architecture."""
    if hasattr(mlp, "gate_proj"):  # Llama, Qwen, Mistral, Gemma, OLMo
        return cast("Tensor", mlp.act_fn(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))
    if hasattr(mlp, "gate_up_proj"):  # Phi-3
        gate, up = mlp.gate_up_proj(hidden).chunk(2, -1)
        return cast("Tensor", mlp.activation_fn(gate) * up)
    if hasattr(mlp, "c_fc"):  # GPT-2
        return cast("Tensor", mlp.act(mlp.c_fc(hidden)))
    if hasattr(mlp, "dense_h_to_4h"):  # GPT-NeoX
        return cast("Tensor", mlp.act(mlp.dense_h_to_4h(hidden)))
    return cast("Tensor", mlp.activation_fn(mlp.fc1(hidden)))  # OPT, whose MLP is part of its layer


def test_keys_are_those_of_the_mlp_written_out(any_lm: EditableLM) -> None:
    for layer in range(len(any_lm.layers)):
        mlp: Any = any_lm.model.get_submodule(any_lm.weight_name(layer).rpartition(".")[0])
        first: nn.Module = mlp.fc1 if hasattr(mlp, "fc1") else mlp
        received: list[Tensor] = []
        with hooks.hooked(first.register_forward_pre_hook(lambda _, args, kept=received: kept.append(args[0]))):
            (record,) = any_lm.record(batch_of(any_lm), [any_lm.projections[layer]])
        expected = key_by_hand(mlp, received[0]).view(record.input.shape)
        assert torch.allclose(record.input, expected, atol=1e-6)


FEW = ["gpt2", "llama", "opt"]
"""Architectures whose projections and MLPs differ most."""


@pytest.mark.parametrize("any_lm", FEW, indirect=True)
def test_one_pass_reads_several_layers(any_lm: EditableLM) -> None:
    together = any_lm.record(batch_of(any_lm), any_lm.projections)
    for projection, record in zip(any_lm.projections, together, strict=True):
        (alone,) = any_lm.record(batch_of(any_lm), [projection])
        assert torch.equal(record.input, alone.input)


def test_nothing_above_the_last_module_is_computed(lm: EditableLM) -> None:
    called: list[int] = []
    for i, layer in enumerate(lm.layers):
        layer.register_forward_hook(lambda *_, i=i: called.append(i))
    lm.record(batch_of(lm), [lm.projections[0], lm.projections[1]])
    assert called == [0]  # the pass ends inside layer 1


def test_logits_at_some_places_are_those_of_the_whole_model(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    rows, positions = torch.tensor([0, 1, 1, 3]), torch.tensor([4, 2, 7, 0])
    with torch.no_grad():
        found = any_lm.logits(batch, rows, positions)
    assert torch.allclose(found, whole_logits(any_lm, batch)[rows, positions], atol=1e-5)


def test_logits_are_float32_whatever_the_weights_are(lm: EditableLM) -> None:
    lm.model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    with torch.no_grad():
        assert lm.logits(batch_of(lm), torch.tensor([0]), torch.tensor([2])).dtype == torch.float32


@pytest.mark.parametrize("part", ["layer", "projection"])
def test_a_watched_module_of_the_last_layer_sees_all_tokens(any_lm: EditableLM, part: str) -> None:
    batch = batch_of(any_lm)
    module = any_lm.layers[-1] if part == "layer" else any_lm.projections[-1]
    rows, positions = torch.tensor([1]), torch.tensor([2])
    with torch.no_grad(), hooks.recording([module], len(TEXTS), any_lm.device) as records:
        any_lm.logits(batch, rows, positions, watched=[module])
    (alone,) = any_lm.record(batch, [module])
    assert torch.equal(records[0].output, alone.output)


def test_nobody_watching_the_last_mlp_is_computed_where_it_is_read_only(lm: EditableLM) -> None:
    seen: list[int] = []
    lm.projections[-1].register_forward_hook(lambda _, args, __: seen.append(args[0].shape[:-1].numel()))
    with torch.no_grad():
        lm.logits(batch_of(lm), torch.tensor([0, 1, 3]), torch.tensor([4, 2, 0]))
    assert seen == [3]


def test_resuming_from_a_layers_input_changes_nothing(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    rows, positions = batch.attention_mask.nonzero(as_tuple=True)
    with torch.no_grad():
        whole = any_lm.logits(batch, rows, positions)
        for layer in range(len(any_lm.layers)):
            (record,) = any_lm.record(batch, [any_lm.layers[layer]])
            with any_lm.resumed(layer, record.input):
                assert torch.allclose(any_lm.logits(batch, rows, positions), whole, atol=1e-5)
        assert torch.equal(any_lm.logits(batch, rows, positions), whole)


def test_a_shift_of_a_layers_output_is_what_the_next_layer_receives(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    (before,) = any_lm.record(batch, [any_lm.layers[1]])
    with any_lm.shifted(any_lm.layers[0], lambda hidden: hidden + 1.0, len(TEXTS)):
        (after,) = any_lm.record(batch, [any_lm.layers[1]])
    assert torch.allclose(after.input, before.input + 1.0, atol=1e-6)


def test_padding_changes_no_logit(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    together = whole_logits(any_lm, batch)[batch.attention_mask.bool()]
    alone = torch.cat([whole_logits(any_lm, batch_of(any_lm, [text]))[0] for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-5)


def test_a_tokenizer_needs_no_padding_token(lm: EditableLM) -> None:
    batch = batch_of(lm)
    padded = whole_logits(lm, batch)[batch.attention_mask.bool()]
    lm.tokenizer.pad_token = None
    batch = batch_of(lm)
    assert torch.equal(whole_logits(lm, batch)[batch.attention_mask.bool()], padded)


def test_a_tokenizer_without_offsets_is_refused(lm: EditableLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(lm.tokenizer), "is_fast", False)
    with pytest.raises(InputError, match=r"tokenizer is '\w+': it gives no character offsets"):
        EditableLM(lm.model, lm.tokenizer)


@pytest.mark.parametrize("any_lm", FEW, indirect=True)
def test_generation_is_greedy_and_gives_only_what_is_new(any_lm: EditableLM) -> None:
    ids = batch_of(any_lm, ["Ada Novak works as a"]).input_ids
    prompt_length = ids.shape[1]
    for _ in range(4):
        logits = whole_logits(any_lm, PaddedTokens(ids, torch.ones_like(ids)))
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
        if ids[0, -1] == any_lm.tokenizer.eos_token_id:
            break
    expected = any_lm.tokenizer.decode(ids[0, prompt_length:], skip_special_tokens=True)
    assert any_lm.generate("Ada Novak works as a", 4) == expected


def test_a_model_is_frozen_and_in_evaluation_mode() -> None:
    lm = random_lm("gpt2")  # which has dropout
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())


def test_a_device_without_float64_is_refused(lm: EditableLM) -> None:
    with pytest.raises(InputError, match="accelerator is 'mps': MPS has no float64"):
        lm.to(torch.device("mps"))
    assert lm.to(torch.device("cpu")) is lm


def test_the_context_is_that_of_the_configuration(any_lm: EditableLM) -> None:
    assert any_lm.context_length == 128
