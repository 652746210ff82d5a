"""Second moments of retain keys: one pass, cached, continued."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import TEXTS
from zu_lightning import EditableLM, InputError, LowRankUpdate, second_moments
from zu_lightning.lm.tokens import collate, tokenize
from zu_lightning.problem import moments


def test_second_moments_of_several_layers_are_the_mean_over_tokens(any_lm: EditableLM) -> None:
    found = second_moments(any_lm, TEXTS, [0, 2], max_tokens=50)
    for layer in (0, 2):
        keys = []
        for text in TEXTS:
            tokens = collate([tokenize(any_lm.tokenizer, text)], any_lm.tokenizer)
            (record,) = any_lm.record(tokens, [any_lm.projections[layer]])
            keys.append(record.input[0].double())
        stacked = torch.cat(keys)
        expected = stacked.T @ stacked / len(stacked)
        assert (found[layer] - expected).norm() < 1e-6 * expected.norm()


def test_no_retain_text_is_refused(lm: EditableLM) -> None:
    with pytest.raises(InputError, match="no retain text"):
        second_moments(lm, [], [0])


def test_a_token_budget_ends_the_reading(lm: EditableLM) -> None:
    first = len(tokenize(lm.tokenizer, TEXTS[0]).ids)
    cut = second_moments(lm, TEXTS, [1], token_budget=first)
    assert torch.allclose(cut[1], second_moments(lm, TEXTS[:1], [1])[1])
    shorter = second_moments(lm, TEXTS, [1], token_budget=first - 2)
    assert torch.allclose(shorter[1], second_moments(lm, TEXTS[:1], [1], max_length=first - 2)[1])


def fail(*_: object, **__: object) -> None:
    raise AssertionError("a pass over the corpus")


def test_moments_are_read_from_the_cache(lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = second_moments(lm, TEXTS, [0, 2], cache=tmp_path)
    assert not list(tmp_path.glob("*partial*")) + list(tmp_path.glob("*tmp*"))
    with monkeypatch.context() as patch:
        patch.setattr(lm, "record", fail)
        again = second_moments(lm, TEXTS, [2, 0], cache=tmp_path)
    assert all(torch.equal(first[layer], again[layer]) for layer in (0, 2))
    assert first.keys() == again.keys()


def test_only_missing_layers_are_computed(lm: EditableLM, tmp_path: Path) -> None:
    second_moments(lm, TEXTS, [0], cache=tmp_path)
    both = second_moments(lm, TEXTS, [0, 2], cache=tmp_path)
    assert torch.allclose(both[2], second_moments(lm, TEXTS, [2])[2])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", ["weights", "text", "length", "budget"])
def test_other_moments_are_not_taken_from_the_cache(lm: EditableLM, tmp_path: Path, change: str) -> None:
    given = {"cache": tmp_path, "max_length": 9, "token_budget": 30}
    before = second_moments(lm, TEXTS, [1], **given)
    texts = TEXTS
    if change == "weights":
        lm.apply(0, LowRankUpdate(torch.randn(16, 1).double(), torch.randn(1, 40).double()))
    elif change == "text":
        texts = TEXTS[::-1]
    else:
        given["max_length" if change == "length" else "token_budget"] = 8
    after = second_moments(lm, texts, [1], **given)
    assert not torch.allclose(before[1], after[1])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_broken_file_in_the_cache_is_computed_again(
    lm: EditableLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = second_moments(lm, TEXTS, [1], cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(second_moments(lm, TEXTS, [1], cache=tmp_path)[1], first[1])
    assert "cannot be read" in caplog.text


def test_a_killed_pass_goes_on_and_gives_the_same_matrix(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"layers": [0, 1], "max_tokens": 20}
    expected = second_moments(lm, TEXTS, **given, cache=tmp_path / "whole")
    monkeypatch.setattr(moments, "SAVE_EVERY", 0.0)
    record, calls = lm.record, []

    def killed_after_two(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return record(*arguments)

    monkeypatch.setattr(lm, "record", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        second_moments(lm, TEXTS, **given, cache=tmp_path)
    assert len(list(tmp_path.glob("partial-*.safetensors"))) == 1
    found = second_moments(lm, TEXTS, **given, cache=tmp_path)
    assert len(calls) == 3 + len(TEXTS) - 2
    assert all(torch.equal(found[layer], expected[layer]) for layer in (0, 1))
    assert not list(tmp_path.glob("partial-*"))


def test_products_by_blocks_are_products() -> None:
    keys = torch.randn(30, 13)
    total = torch.zeros(13, 13, dtype=torch.float64)
    moments._add_product(total, keys)
    expected: Tensor = keys.double().mT @ keys.double()
    assert torch.allclose(total.triu(), expected.triu(), atol=1e-5)
