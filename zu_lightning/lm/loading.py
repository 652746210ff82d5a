"""Load a causal language model and its tokenizer, with errors that name the remedy."""

import importlib.util
from pathlib import Path
from typing import Any

import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from zu_lightning.runtime.errors import InputError

SOURCE_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code", "gguf_file")
"""Arguments of ``from_pretrained`` for a model's source; others (``device_map``) are about how it is loaded."""

DECIDING_OPTIONS = ("revision", "subfolder", "trust_remote_code", "gguf_file")
"""Those of them that determine the model; of the others, ``token`` is a secret."""


def load_pretrained(
    name_or_path: str | Path, dtype: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from the hub, a directory, or a GGUF file.

    Args:
        name_or_path: Hub id, a directory written by ``save_pretrained``, or a file that ends in ``.gguf``.
        dtype: ``auto`` (what the model's configuration says), ``float32``, ``bfloat16``, or ``float16``.
        options: More arguments of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        InputError: The model is missing, incomplete, or not a causal language model.
    """
    config = model_config(name_or_path, **options)
    try:
        model = load_model(name_or_path, dtype, options | {"config": config})
        source, from_source = _source(name_or_path, options)
        tokenizer = AutoTokenizer.from_pretrained(source, **source_options(from_source))
    except Exception as error:  # the loaders of weights and tokenizers raise all kinds, even Exception itself
        raise InputError(
            "model_name_or_path", str(name_or_path),
            f"there is a configuration, but its weights or tokenizer cannot be loaded: {_first_line(error)}",
        ) from error  # fmt: skip
    return model, tokenizer


def load_model(name_or_path: str | Path, dtype: Any, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model; the weights of a GGUF file are dequantized, and it is then a model like any other.

    Args:
        name_or_path: Hub id, directory, or GGUF file.
        dtype: As of ``from_pretrained``.
        options: More arguments of ``from_pretrained``.
    """
    source, options = _source(name_or_path, options)
    if "gguf_file" not in options:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    if hasattr(transformers, "GgufConfig"):  # with it, weights may stay in their blocks
        options = options | {"quantization_config": transformers.GgufConfig(dequantize=True)}
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
    # What says that the weights are quantized would keep the model from being saved.
    vars(model).update(hf_quantizer=None, is_quantized=False)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.name_or_path = model.config.name_or_path = str(name_or_path)
    return model


def check_model(name_or_path: str | Path, **load_options: Any) -> int:
    """Check that a name is that of a causal language model, see :func:`model_config`; its number of decoder layers."""
    return int(model_config(name_or_path, **load_options).get_text_config().num_hidden_layers)


def model_config(name_or_path: str | Path, **load_options: Any) -> PretrainedConfig:
    """Read the configuration of a causal language model, without loading its weights.

    Args:
        name_or_path: Hub id, directory, or GGUF file.
        load_options: Arguments of ``from_pretrained``, of which :data:`SOURCE_OPTIONS` are used.

    Raises:
        InputError: It is missing, or is not a causal language model.
    """
    source, options = _source(name_or_path, load_options)
    if "gguf_file" in options and importlib.util.find_spec("gguf") is None:
        raise InputError("model_name_or_path", str(name_or_path), "GGUF files need a package: pip install gguf")
    try:
        config = AutoConfig.from_pretrained(source, **source_options(options))
    except Exception as error:  # the readers of files raise all kinds
        raise InputError(
            "model_name_or_path", str(name_or_path), "this is neither a model directory (with a config.json), nor a "
            f"GGUF file, nor a model that can be loaded from the hub: {_first_line(error)}",
        ) from error  # fmt: skip
    trained_as = config.architectures or []
    if type(config) not in AutoModelForCausalLM._model_mapping or any("MaskedLM" in name for name in trained_as):
        raise InputError(
            "model_name_or_path", str(name_or_path), f"this {config.model_type!r} model is not a causal language "
            "model: name a decoder such as Llama, Qwen, Mistral, Gemma, Phi, GPT-2, GPT-NeoX, or OPT.",
        )  # fmt: skip
    found: PretrainedConfig = config
    return found


def source_options(load_options: dict[str, Any]) -> dict[str, Any]:
    """The options among :data:`SOURCE_OPTIONS`."""
    return {name: value for name, value in load_options.items() if name in SOURCE_OPTIONS}


def _source(name_or_path: str | Path, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` calls a source: a GGUF file is a folder, and an option with the file's name."""
    path = Path(name_or_path)
    if path.suffix == ".gguf" and path.exists():
        return str(path.parent), options | {"gguf_file": path.name}
    return str(name_or_path), options


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
