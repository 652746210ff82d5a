"""Where the layers and their output projections are, and which models are refused."""

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    MixtralConfig,
    PretrainedConfig,
    Qwen3MoeConfig,
)

from tests.conftest import CONFIGS, SMALL, random_lm, train_tokenizer
from zu_lightning import EditableLM, InputError
from zu_lightning.lm import architecture

PROJECTIONS = {
    "llama": "model.layers.{}.mlp.down_proj",
    "llama-tied": "model.layers.{}.mlp.down_proj",
    "qwen2": "model.layers.{}.mlp.down_proj",
    "qwen3": "model.layers.{}.mlp.down_proj",
    "mistral": "model.layers.{}.mlp.down_proj",
    "gemma2": "model.layers.{}.mlp.down_proj",
    "gemma3": "model.layers.{}.mlp.down_proj",
    "olmo2": "model.layers.{}.mlp.down_proj",
    "phi3": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gpt-neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.{}.fc2",
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_projections_and_mlps_are_located(name: str) -> None:
    lm = random_lm(name)
    assert [lm.weight_name(layer) for layer in range(3)] == [PROJECTIONS[name].format(layer) for layer in range(3)]
    assert len(lm.layers) == 3
    assert lm.normalizes_mlp_output == (name in ("gemma2", "gemma3", "olmo2"))
    mlp = architecture.enclosing_mlp(lm.model, lm.projections[1], lm.layers[1])
    assert (mlp is None) == (name == "opt")
    assert mlp is None or lm.projections[1] in set(mlp.modules())


DECOYS = {
    "attn": {"c_proj": nn.Linear(16, 16)},
    "attention": {"c_proj": nn.Linear(16, 16)},
    "experts": {"down_proj": nn.Linear(40, 16)},
    "router": {"fc2": nn.Linear(16, 4)},
    "mixer": {"out": nn.Linear(40, 16)},
}


@pytest.mark.parametrize("name", sorted(DECOYS))
def test_no_other_part_of_a_layer_is_taken_for_the_projection(name: str, lm: EditableLM) -> None:
    projection, decoy = nn.Linear(40, 16), nn.ModuleDict(DECOYS[name])
    layer = nn.ModuleDict({"mlp": nn.ModuleDict({"down_proj": projection}), name: decoy})
    assert architecture.output_projection(layer, lm.model) is projection
    with pytest.raises(InputError, match="its layers have no dense MLP output projection"):
        architecture.output_projection(nn.ModuleDict({name: decoy}), lm.model)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2"])
def test_the_head_gives_logits_from_hidden_states(name: str) -> None:
    lm = random_lm(name)
    hidden = torch.ones(2, 16)
    assert architecture.output_head(lm.model)(hidden).shape == (2, lm.model.config.vocab_size)


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**SMALL, num_local_experts=2),
        Qwen3MoeConfig(**SMALL, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
    ],
    ids=["mixtral", "qwen3-moe"],
)
def test_mixtures_of_experts_are_refused(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    with pytest.raises(InputError, match=r"model is '\w+': .* experts of a mixture are not edited"):
        EditableLM(model, train_tokenizer())


def test_a_model_without_a_list_of_its_layers_is_refused(lm: EditableLM) -> None:
    lm.model.config.num_hidden_layers = 7
    with pytest.raises(InputError, match="model is 'LlamaForCausalLM': no list of 7 decoder layers was found"):
        EditableLM(lm.model, lm.tokenizer)


def test_a_layer_without_a_known_projection_is_refused() -> None:
    model = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8))
    layers = architecture.decoder_layers(model)
    assert isinstance(layers, nn.ModuleList)
    with pytest.raises(InputError, match="model is 'BertModel': its layers have no dense MLP output projection"):
        architecture.output_projection(layers[0], model)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([0, 7], r"layers is \[0, 7\]: layers \[7\] do not exist; the model has 0\.\.2"),
        ([-1], r"layers \[-1\] do not exist"),
        ([], r"layers is \[\]: name at least one of 0\.\.2"),
        ([1, 0], "increasing order"),
        ([1, 1], "name each layer once"),
    ],
)
def test_wrong_layers_are_refused(layers: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        architecture.check_layers(layers, 3)
