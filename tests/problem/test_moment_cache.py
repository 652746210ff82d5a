"""A cache that recognizes the weights and the text that moments belong to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TEXTS, random_lm, train_tokenizer, update_for
from zu_lightning import EditableLM, ReadingOptions, RetainText, apply_update
from zu_lightning.lm.tokens import tokenize
from zu_lightning.problem.moment_cache import MomentCache, read_tensors, weights_digest, write_tensors

CPU = torch.device("cpu")
TEXT = RetainText(TEXTS)


def moment(layer: int) -> torch.Tensor:
    return torch.full((4, 4), float(layer), dtype=torch.float64)


def test_what_was_written_is_read(lm: EditableLM, tmp_path: Path) -> None:
    MomentCache(tmp_path, lm, TEXT).write({layer: moment(layer) for layer in (0, 2)})
    found = MomentCache(tmp_path, lm, TEXT).read([2, 1, 0], CPU)
    assert found.keys() == {0, 2}
    assert all(torch.equal(found[layer], moment(layer)) for layer in found)


def test_an_empty_folder_holds_nothing(lm: EditableLM, tmp_path: Path) -> None:
    assert MomentCache(tmp_path / "nowhere", lm, TEXT).read([0, 1], CPU) == {}


def test_the_same_model_and_text_are_recognized_in_another_process(lm: EditableLM, tmp_path: Path) -> None:
    assert MomentCache(tmp_path, random_lm("llama"), RetainText(list(TEXTS))).key == MomentCache(tmp_path, lm, TEXT).key


def test_how_a_tokenizer_was_called_last_does_not_matter(lm: EditableLM, tmp_path: Path) -> None:
    before = MomentCache(tmp_path, lm, TEXT).key
    lm.tokenizer(TEXTS[0], truncation=True, max_length=3)
    assert lm.tokenizer.backend_tokenizer.truncation is not None
    tokenize(lm.tokenizer, TEXTS[0], max_length=5)
    assert MomentCache(tmp_path, lm, TEXT).key == before


@pytest.mark.parametrize(
    "text",
    [
        RetainText(TEXTS[:-1]),
        RetainText(TEXTS[::-1]),
        RetainText(["".join(TEXTS[:2]), *TEXTS[2:]]),
        *(
            replace(TEXT, reading=ReadingOptions(**{name: 7}))
            for name in ("max_length", "batch_tokens", "corpus_tokens")
        ),
        replace(TEXT, reading=ReadingOptions(corpus_tokens=None)),
    ],
    ids=["fewer", "order", "borders", "max_length", "batch_tokens", "corpus_tokens", "all tokens"],
)
def test_other_text_or_another_way_to_read_it_has_another_key(lm: EditableLM, tmp_path: Path, text: RetainText) -> None:
    assert MomentCache(tmp_path, lm, text).key != MomentCache(tmp_path, lm, TEXT).key


def test_limits_that_change_nothing_have_the_same_key(lm: EditableLM, tmp_path: Path) -> None:
    keys = {
        MomentCache(tmp_path, lm, replace(TEXT, reading=ReadingOptions(**options))).key
        for options in ({"max_length": lm.context_length}, {"max_length": 4096}, {"heldout_documents": 3})
    }
    assert len(keys) == 1


def test_another_tokenizer_has_another_key(lm: EditableLM, tmp_path: Path) -> None:
    other = EditableLM(lm.model, train_tokenizer(bos=False))
    assert MomentCache(tmp_path, other, TEXT).key != MomentCache(tmp_path, lm, TEXT).key


def edited(lm: EditableLM) -> None:
    apply_update(lm, 2, update_for(lm, 2, rank=1))


def configured(lm: EditableLM) -> None:
    lm.model.config.rms_norm_eps = 0.1


@pytest.mark.parametrize("change", [edited, configured])
def test_other_weights_have_another_digest(lm: EditableLM, change: Any) -> None:
    before = weights_digest(lm.model)
    assert weights_digest(random_lm("llama").model) == before
    change(lm)
    assert weights_digest(lm.model) != before


def test_the_same_values_in_another_dtype_have_another_digest(lm: EditableLM) -> None:
    lm.model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    before = weights_digest(lm.model)
    lm.model.to(dtype=torch.float32)  # type: ignore[call-arg]
    assert weights_digest(lm.model) != before


def test_unfinished_sums_belong_to_their_layers(lm: EditableLM, tmp_path: Path) -> None:
    cache, other = MomentCache(tmp_path, lm, TEXT), MomentCache(tmp_path, lm, RetainText(["Other text."]))
    assert cache.partial_file([0, 1]) == cache.partial_file((0, 1))
    assert len({cache.partial_file(layers) for layers in ([0, 1], [1, 0], [0])}) == 3
    assert cache.partial_file([0]) not in (cache.file(0), other.partial_file([0]))


def test_tensors_are_written_whole_or_not_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "folder" / "a.safetensors"
    write_tensors(file, {"a": torch.arange(6.0).view(2, 3).mT})
    found = read_tensors(file, CPU)
    assert found
    assert torch.equal(found["a"], torch.arange(6.0).view(2, 3).mT)
    write_tensors(file / "below", {"a": torch.zeros(1)})
    assert "cannot be written" in caplog.text
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_cannot_be_read_counts_as_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_tensors(tmp_path / "nowhere.safetensors", CPU) is None
    assert not caplog.text
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    assert read_tensors(tmp_path / "a.safetensors", CPU) is None
    assert "cannot be read" in caplog.text
