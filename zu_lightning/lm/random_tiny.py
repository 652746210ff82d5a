"""Tiny random models of any architecture, to test a configuration before its weights are downloaded."""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from zu_lightning.runtime.errors import InputError

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def write_random_tiny_model(name_or_path: str, depth: int, folder: str | Path) -> None:
    """Write a model directory with the architecture that a name contains, random weights, and a tokenizer of bytes.

    Args:
        name_or_path: Hub id or directory; its last part must contain the name of an architecture, as
            ``Llama-3.1-8B`` does.
        depth: Number of decoder layers.
        folder: Where to write.

    Raises:
        InputError: The name contains no architecture that transformers knows.
    """
    name = _plain(Path(name_or_path).name)
    architectures = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if _plain(kind) in name]
    if not architectures:
        raise InputError(
            "model_name_or_path", str(name_or_path), "it does not contain the name of an architecture, which a random "
            "tiny model needs: choose a name that contains one, such as llama, qwen3, mistral, or gpt2.",
        )  # fmt: skip
    tokenizer = _byte_tokenizer()
    sizes = SIZES | {"num_hidden_layers": depth, "vocab_size": len(tokenizer)}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in SPECIAL_TOKENS.items()}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(max(architectures, key=len), **sizes, **ids)
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain(name: str) -> str:
    """A name without case and punctuation: ``Phi-3`` and ``phi3`` are the same."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token for each byte, and three special ones."""
    tokens = [*SPECIAL_TOKENS.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)  # type: ignore[no-untyped-call]
