"""Reading and editing projections, on every architecture."""

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, PreTrainedConfig, Qwen3MoeConfig

from tests.conftest import SMALL, TEXTS, train_tokenizer
from zu_lightning import EditableLM, InputError, LowRankUpdate
from zu_lightning.lm.editable import check_layers
from zu_lightning.lm.tokens import TokenBatch, collate, tokenize


def batch_of(lm: EditableLM, texts: tuple[str, ...] = TEXTS) -> TokenBatch:
    return collate([tokenize(lm.tokenizer, text) for text in texts], lm.tokenizer)


def update_for(lm: EditableLM, layer: int, rank: int = 2) -> LowRankUpdate:
    d_out, d_in = lm.weight(layer).shape
    generator = torch.Generator().manual_seed(layer)
    return LowRankUpdate(
        torch.randn(d_out, rank, generator=generator, dtype=torch.float64) / d_out**0.5,
        torch.randn(rank, d_in, generator=generator, dtype=torch.float64) / d_in**0.5,
    )


def all_logits(lm: EditableLM, batch: TokenBatch) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return logits[batch.attention_mask.bool()]


def test_projection_output_is_weight_times_key(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    for layer, projection in enumerate(any_lm.projections):
        (record,) = any_lm.record(batch, [projection])
        assert any_lm.weight(layer).shape == (16, 40)
        bias = projection.bias if getattr(projection, "bias", None) is not None else 0.0
        value = record.input @ any_lm.weight(layer).T + bias
        assert torch.allclose(value, record.output, atol=1e-6)


def key_by_hand(mlp: nn.Module, hidden: Tensor) -> Tensor:
    """What the MLP's output projection receives, written out for each architecture."""
    if hasattr(mlp, "gate_proj"):  # Llama, Qwen, Mistral, Gemma, OLMo
        return mlp.act_fn(mlp.gate_proj(hidden)) * mlp.up_proj(hidden)
    if hasattr(mlp, "gate_up_proj"):  # Phi-3
        gate, up = mlp.gate_up_proj(hidden).chunk(2, -1)
        return mlp.activation_fn(gate) * up
    if hasattr(mlp, "c_fc"):  # GPT-2
        return mlp.act(mlp.c_fc(hidden))
    if hasattr(mlp, "dense_h_to_4h"):  # GPT-NeoX
        return mlp.act(mlp.dense_h_to_4h(hidden))
    return mlp.activation_fn(mlp.fc1(hidden))  # OPT, whose MLP is part of its layer


def test_keys_are_those_of_the_mlp_written_out(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    for layer in range(len(any_lm.layers)):
        mlp = any_lm.model.get_submodule(any_lm.weight_name(layer).rpartition(".")[0])
        first = mlp.fc1 if hasattr(mlp, "fc1") else mlp
        received: list[Tensor] = []
        handle = first.register_forward_pre_hook(lambda _, args, kept=received: kept.append(args[0]))
        (record,) = any_lm.record(batch, [any_lm.projections[layer]])
        handle.remove()
        expected = key_by_hand(mlp, received[0]).view(record.input.shape)
        assert torch.allclose(record.input, expected, atol=1e-6)


def test_one_pass_reads_several_layers(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    together = any_lm.record(batch, any_lm.projections)
    for projection, record in zip(any_lm.projections, together, strict=True):
        (alone,) = any_lm.record(batch, [projection])
        assert torch.equal(record.input, alone.input)


def test_nothing_above_the_last_module_is_computed(lm: EditableLM) -> None:
    called = []
    lm.layers[2].register_forward_hook(lambda *_: called.append(2))
    lm.record(batch_of(lm), [lm.projections[0], lm.projections[1]])
    assert not called


def test_resuming_from_a_layers_input_changes_nothing(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    rows, positions, _ = TokenBatch(**{**vars(batch), "answer": torch.ones(len(TEXTS), dtype=int)}).answer_positions()
    with torch.no_grad():
        whole = any_lm.logits(batch, rows, positions)
        for layer in range(3):
            (record,) = any_lm.record(batch, [any_lm.layers[layer]])
            with any_lm.resumed(layer, record.input):
                assert torch.allclose(any_lm.logits(batch, rows, positions), whole, atol=1e-5)
        assert torch.allclose(any_lm.logits(batch, rows, positions), whole, atol=1e-6)


def test_logits_at_some_places_are_those_of_the_whole_model(any_lm: EditableLM) -> None:
    batch = batch_of(any_lm)
    rows, positions = torch.tensor([0, 1, 1, 3]), torch.tensor([4, 2, 7, 0])
    with torch.no_grad():
        whole = any_lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        assert torch.allclose(any_lm.logits(batch, rows, positions), whole[rows, positions], atol=1e-5)
        with any_lm.recording([any_lm.projections[-1]]) as records:
            any_lm.logits(batch, rows, positions)
    (alone,) = any_lm.record(batch, [any_lm.projections[-1]])
    assert torch.equal(records[0].output, alone.output)


def test_padding_changes_no_logit(any_lm: EditableLM) -> None:
    together = all_logits(any_lm, batch_of(any_lm))
    alone = torch.cat([all_logits(any_lm, batch_of(any_lm, (text,))) for text in TEXTS])
    assert torch.allclose(together, alone, atol=1e-5)


def test_an_edit_changes_its_weight_and_no_other(any_lm: EditableLM) -> None:
    before = {name: value.clone() for name, value in any_lm.model.state_dict().items()}
    update = update_for(any_lm, 1)
    wanted = any_lm.weight(1).double() + update.dense()
    report = any_lm.apply(1, update)
    changed = {name for name, value in any_lm.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{any_lm.weight_name(1)}.weight"}
    assert torch.allclose(any_lm.weight(1).double(), wanted, atol=1e-6)
    assert report.rank == 2
    assert report.stored_error < 1e-5


def test_bfloat16_reports_what_rounding_took_away(lm: EditableLM) -> None:
    lm.model.to(torch.bfloat16)
    exact = lm.weight(0).double() + update_for(lm, 0).dense()
    report = lm.apply(0, update_for(lm, 0))
    lost = (lm.weight(0).double() - exact).norm() / update_for(lm, 0).dense().norm()
    assert report.stored_error == pytest.approx(lost.item())
    assert report.stored_error > 1e-4


def test_nan_stops_an_edit_before_the_weight_is_touched(lm: EditableLM) -> None:
    before = lm.weight(0).clone()
    update = update_for(lm, 0)
    update.left[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer 0 holds NaN"):
        lm.apply(0, update)
    assert torch.equal(lm.weight(0), before)
    assert not lm.updates


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**SMALL, num_local_experts=2),
        Qwen3MoeConfig(**SMALL, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
    ],
    ids=["mixtral", "qwen3-moe"],
)
def test_mixtures_of_experts_are_refused(config: PreTrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(InputError, match="experts of a mixture are not edited"):
        EditableLM(model, train_tokenizer())


@pytest.mark.parametrize(
    ("layers", "message"),
    [([0, 7], r"layers \[7\] do not exist, the model has 0..2"), ([1, 0], "increasing order"), ([], "do not exist")],
)
def test_wrong_layers_are_refused(layers: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_layers(layers, 3)


def test_a_tokenizer_without_padding_token_is_handled() -> None:
    torch.manual_seed(0)
    lm = EditableLM(AutoModelForCausalLM.from_config(LlamaConfig(**SMALL)), train_tokenizer())
    padded = all_logits(lm, batch_of(lm))
    lm.tokenizer.pad_token = None
    assert torch.equal(all_logits(lm, batch_of(lm)), padded)
