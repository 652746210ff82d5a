"""Loading from a directory, and every way in which that can fail."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, PreTrainedConfig, T5Config

from tests.conftest import batch_of, random_lm
from zu_lightning import EditableLM, InputError
from zu_lightning.lm.loading import check_model, source_options


@pytest.fixture
def saved(lm: EditableLM, tmp_path: Path) -> Path:
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_directory_gives_the_model_that_was_saved(lm: EditableLM, saved: Path) -> None:
    loaded = EditableLM.from_pretrained(saved)
    assert loaded.name_or_path == str(saved)
    assert torch.equal(loaded.weight(1), lm.weight(1))
    assert torch.equal(batch_of(loaded).input_ids, batch_of(lm).input_ids)
    assert check_model(saved) == 3


def test_a_model_may_be_in_a_subfolder(lm: EditableLM, saved: Path) -> None:
    loaded = EditableLM.from_pretrained(saved.parent, subfolder=saved.name)
    assert torch.equal(loaded.weight(1), lm.weight(1))
    assert check_model(saved.parent, subfolder=saved.name) == 3


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_weights_are_of_the_dtype_asked_for(saved: Path, dtype: str, expected: torch.dtype) -> None:
    assert EditableLM.from_pretrained(saved, dtype=dtype).weight(0).dtype == expected


def test_what_says_how_a_model_is_loaded_does_not_say_where_it_comes_from() -> None:
    assert source_options({"revision": "main", "device_map": "auto", "token": "x"}) == {
        "revision": "main",
        "token": "x",
    }


@pytest.mark.parametrize("name", ["nowhere", "empty", "not a name at all"])
def test_what_is_not_a_model_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=f"model_name_or_path is '.*{name}': this is neither a model directory"):
        EditableLM.from_pretrained(tmp_path / name)


@pytest.mark.parametrize("config", [BertConfig(architectures=["BertForMaskedLM"]), T5Config()], ids=["bert", "t5"])
def test_what_is_not_a_causal_language_model_is_refused(tmp_path: Path, config: PreTrainedConfig) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"this '{config.model_type}' model is not a causal language model"):
        check_model(tmp_path)


def break_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("damage", [break_weights, remove_weights, break_tokenizer])
def test_an_incomplete_model_is_refused(saved: Path, damage: Any) -> None:
    damage(saved)
    with pytest.raises(InputError, match="there is a configuration, but its weights or tokenizer cannot be loaded"):
        EditableLM.from_pretrained(saved)


def test_architectures_are_read_from_the_configuration_alone(tmp_path: Path) -> None:
    random_lm("gpt2").model.config.save_pretrained(tmp_path)
    assert check_model(tmp_path, device_map="auto") == 3
