"""Tiny stand-ins for models that have not been downloaded yet."""

from pathlib import Path

import pytest
import torch

from tests.conftest import TEXTS
from zu_lightning import EditableLM, InputError
from zu_lightning.lm.random_tiny import write_random_tiny_model

NAMES = {
    "meta-llama/Llama-3.1-8B-Instruct": "llama",
    "Qwen/Qwen3-4B": "qwen3",
    "mistralai/Mistral-7B-v0.3": "mistral",
    "openai-community/gpt2": "gpt2",
    "microsoft/Phi-3-mini": "phi3",
}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_tiny_model_has_the_architecture_of_its_name(name: str, tmp_path: Path) -> None:
    write_random_tiny_model(name, 3, tmp_path)
    lm = EditableLM.from_pretrained(tmp_path)
    assert lm.model.config.model_type == NAMES[name]
    assert len(lm.layers) == 3
    assert lm.weight(2).shape[0] == 32
    assert isinstance(lm.generate("Ada", 2), str)


def test_any_text_has_tokens(tmp_path: Path) -> None:
    write_random_tiny_model("llama", 1, tmp_path)
    tokenizer = EditableLM.from_pretrained(tmp_path).tokenizer
    for text in (*TEXTS, "Zoë 李小龙 🤖\n"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert ids[0] == tokenizer.bos_token_id


def test_a_name_always_gives_the_same_weights_and_no_random_number_is_used_up(tmp_path: Path) -> None:
    weights = []
    for seed in (3, 4):
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        write_random_tiny_model("llama", 1, tmp_path / str(seed))
        assert torch.equal(torch.random.get_rng_state(), before)
        weights.append((tmp_path / str(seed) / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_name_that_tells_no_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_name_or_path is 'mine': it does not contain the name of an"):
        write_random_tiny_model("mine", 1, tmp_path)
