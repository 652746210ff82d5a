"""Load a causal language model and its tokenizer, with errors that name the remedy."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from zu_lightning.runtime.errors import InputError

SOURCE_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only", "trust_remote_code")
"""Arguments of ``from_pretrained`` for a model's source; others (``device_map``) are about how it is loaded."""

DECIDING_OPTIONS = ("revision", "subfolder", "trust_remote_code")
"""Those of them that determine the model; of the others, ``token`` is a secret."""


def load_pretrained(
    name_or_path: str | Path, dtype: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer from the hub or a directory.

    Args:
        name_or_path: Hub id, or a directory written by ``save_pretrained``.
        dtype: ``auto`` (what the model's configuration says), ``float32``, ``bfloat16``, or ``float16``.
        options: More arguments of ``AutoModelForCausalLM.from_pretrained``.

    Raises:
        InputError: The model is missing, incomplete, or not a causal language model.
    """
    check_model(name_or_path, **options)
    try:
        model = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=dtype, **options)
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, **source_options(options))
    except Exception as error:  # the loaders of weights and tokenizers raise all kinds, even Exception itself
        raise InputError(
            "model_name_or_path", str(name_or_path),
            f"there is a configuration, but its weights or tokenizer cannot be loaded: {_first_line(error)}",
        ) from error  # fmt: skip
    return model, tokenizer


def check_model(name_or_path: str | Path, **load_options: Any) -> int:
    """Check that a name is that of a causal language model, without loading its weights.

    Args:
        name_or_path: Hub id or directory.
        load_options: Arguments of ``from_pretrained``, of which :data:`SOURCE_OPTIONS` are used.

    Returns:
        The number of its decoder layers.

    Raises:
        InputError: It is missing, or is not a causal language model.
    """
    try:
        config = AutoConfig.from_pretrained(name_or_path, **source_options(load_options))
    except (OSError, ValueError) as error:
        raise InputError(
            "model_name_or_path", str(name_or_path), "this is neither a model directory (with a config.json) nor a "
            f"model that can be loaded from the hub: {_first_line(error)}",
        ) from error  # fmt: skip
    trained_as = config.architectures or []
    if type(config) not in AutoModelForCausalLM._model_mapping or any("MaskedLM" in name for name in trained_as):
        raise InputError(
            "model_name_or_path", str(name_or_path), f"this {config.model_type!r} model is not a causal language "
            "model: name a decoder such as Llama, Qwen, Mistral, Gemma, Phi, GPT-2, GPT-NeoX, or OPT.",
        )  # fmt: skip
    return int(config.get_text_config().num_hidden_layers)


def source_options(load_options: dict[str, Any]) -> dict[str, Any]:
    """The options among :data:`SOURCE_OPTIONS`."""
    return {name: value for name, value in load_options.items() if name in SOURCE_OPTIONS}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
