"""GGUF files: the weights, the tokenizer, an edit, and the export."""

import json
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, dequantize, quantize
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from zu_lightning import EditableLM, InputError, LowRankUpdate, check_export, export_adapter, export_model
from zu_lightning.lm.loading import check_model
from zu_lightning.lm.updates import apply_update

TEMPLATE = "{% for message in messages %}<user>{{ message['content'] }}{% endfor %}"

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
"""Modules of a decoder layer, and what llama.cpp calls them."""


def named_in_gguf(name: str) -> str:
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module, _, kind = name.rpartition(".")
    if module in whole:
        return f"{whole[module]}.{kind}"
    _, _, layer, within = module.split(".", 3)
    return f"blk.{layer}.{NAMES[within]}.{kind}"


def write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase) -> None:
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Qwen2ForCausalLM]:
    """A GGUF file whose matrices have 8 bits, and a model with the same weights, dequantized."""
    tokenizer = AutoTokenizer.from_pretrained("data/demo/model")
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).train(False)
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = GGUFWriter(file, "qwen2")
    writer.add_name("Tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)  # the default of Qwen2Config
    write_tokenizer(writer, tokenizer)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            kind = GGMLQuantizationType.Q8_0
            packed = quantize(parameter.detach().numpy(), kind)
            writer.add_tensor(named_in_gguf(name), packed, raw_dtype=kind)
            parameter.data = torch.tensor(dequantize(packed, kind))
        else:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
            writer.add_tensor(named_in_gguf(name), parameter.detach().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, model


def test_a_gguf_file_is_a_model_like_any_other(quantized: tuple[Path, Qwen2ForCausalLM], tmp_path: Path) -> None:
    file, dequantized = quantized
    prompt = "Ada Novak plays the"
    assert check_model(file) == 3
    lm, tokenizer = EditableLM.from_pretrained(file), AutoTokenizer.from_pretrained("data/demo/model")
    assert lm.name_or_path == str(file)
    assert lm.tokenizer.chat_template == TEMPLATE
    assert lm.tokenizer(prompt, add_special_tokens=False).input_ids == tokenizer(
        prompt, add_special_tokens=False
    ).input_ids  # fmt: skip
    ids = torch.tensor([[0, 5, 17, 300, 4]])
    torch.testing.assert_close(lm.model(ids).logits, dequantized(ids).logits, rtol=1e-6, atol=1e-6)

    generator = torch.Generator().manual_seed(0)
    update = LowRankUpdate(torch.randn(64, 2, generator=generator), torch.randn(2, 96, generator=generator))
    apply_update(lm, 1, update)
    edited = lm.model(ids).logits
    assert not torch.allclose(edited, dequantized(ids).logits, atol=0.01)

    model, adapter = export_model(lm, tmp_path / "model"), export_adapter(lm, {1: update}, tmp_path / "adapter")
    found = check_export(lm, model, adapter, [prompt])
    assert found.model == 0
    assert found.adapter is not None
    assert found.adapter < 1e-4 < found.edit
    exported = AutoModelForCausalLM.from_pretrained(model)
    torch.testing.assert_close(exported(ids).logits, edited)
    base = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    torch.testing.assert_close(PeftModel.from_pretrained(base, adapter)(ids).logits, edited, rtol=1e-4, atol=1e-4)


def test_a_broken_gguf_file_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF, but not really")
    with pytest.raises(InputError, match=r"model_name_or_path is '.*broken.gguf': this is neither .* nor a GGUF file"):
        EditableLM.from_pretrained(tmp_path / "broken.gguf")


def test_without_the_package_the_remedy_is_named(
    quantized: tuple[Path, Qwen2ForCausalLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zu_lightning.lm.loading.importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install gguf"):
        check_model(quantized[0])
