"""Second moments of retain keys: one pass, cached, continued."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import TEXTS, batch_of, update_for
from zu_lightning import EditableLM, InputError, ReadingOptions, RetainText, SecondMoment, apply_update, second_moments
from zu_lightning.editing import moments
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.runtime import cache as cache_module

CPU = torch.device("cpu")


def random_keys(tokens: int, d_in: int) -> Tensor:
    generator = torch.Generator().manual_seed(d_in)
    return torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)


def moments_of(lm: EditableLM, layers: list[int], texts: tuple[str, ...] = TEXTS, **options: Any) -> dict[int, Tensor]:
    """Second moments with reading options, and the cache if one is given."""
    cache, corpus = open_cache(options.pop("cache", None), lm), options.pop("corpus", ())
    return second_moments(lm, RetainText(texts, ReadingOptions(**options), corpus), layers, cache=cache)


@pytest.mark.parametrize("d_in", [1, 2, 4, 13, 40])
def test_a_sum_over_batches_is_the_sum_over_all_keys(d_in: int) -> None:
    keys = random_keys(30, d_in)
    moment = SecondMoment(d_in, CPU)
    for batch in (keys[:1], keys[1:13], keys[13:]):
        moment.update(batch)
    assert torch.allclose(moment.symmetric(), keys.mT @ keys, rtol=1e-12, atol=1e-12)


def test_products_of_float32_keys_are_added_up_in_float64() -> None:
    keys = random_keys(1000, 6).float()
    moment = SecondMoment(6, CPU)
    for key in keys:
        moment.update(key[None])
    assert moment.total.dtype == torch.float64
    expected = sum((torch.outer(key, key).double() for key in keys), torch.zeros(6, 6, dtype=torch.float64))
    assert torch.equal(moment.symmetric(), expected)


def test_a_sum_can_be_looked_at_and_added_to() -> None:
    keys = random_keys(8, 5)
    moment = SecondMoment(5, CPU)
    moment.update(keys[:4])
    assert torch.allclose(moment.symmetric().clone(), keys[:4].mT @ keys[:4])
    moment.update(keys[4:])
    assert torch.allclose(moment.symmetric(), keys.mT @ keys)


def test_moments_of_several_layers_are_the_mean_over_tokens(any_lm: EditableLM) -> None:
    found = moments_of(any_lm, [0, 2], batch_tokens=50)
    for layer in (0, 2):
        records = [any_lm.record(batch_of(any_lm, [text]), [any_lm.projections[layer]])[0] for text in TEXTS]
        keys = torch.cat([record.input[0].double() for record in records])
        expected = keys.T @ keys / len(keys)
        assert found[layer].dtype == torch.float64
        assert (found[layer] - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.parametrize("cache", [False, True])
def test_no_retain_text_is_refused(lm: EditableLM, tmp_path: Path, cache: bool) -> None:
    with pytest.raises(InputError, match="corpus is missing: add retain text") as refused:
        second_moments(lm, RetainText([]), [0], cache=open_cache(tmp_path if cache else None, lm))
    assert refused.value.parameter == "corpus"


def test_the_maximum_number_of_tokens_ends_the_reading(lm: EditableLM) -> None:
    first = int(batch_of(lm, TEXTS[:1]).lengths[0])
    assert torch.equal(moments_of(lm, [1], corpus_tokens=first)[1], moments_of(lm, [1], TEXTS[:1])[1])
    shorter = moments_of(lm, [1], corpus_tokens=first - 2)[1]
    assert torch.equal(shorter, moments_of(lm, [1], TEXTS[:1], max_length=first - 2)[1])
    assert torch.equal(moments_of(lm, [1], corpus_tokens=None)[1], moments_of(lm, [1])[1])


def test_a_document_is_cut_to_the_models_context(lm: EditableLM) -> None:
    long = "very " * 200
    assert batch_of(lm, [long]).input_ids.shape[1] > lm.context_length
    found = moments_of(lm, [1], (long,))[1]
    assert torch.equal(found, moments_of(lm, [1], (long,), max_length=lm.context_length)[1])


def test_moments_are_read_from_the_cache(lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = moments_of(lm, [0, 2], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # one file per layer, and nothing unfinished
    monkeypatch.setattr(lm, "record", lambda *_: pytest.fail("a pass over the retain text"))
    again = moments_of(lm, [2, 0], cache=tmp_path)
    assert list(again) == [2, 0]
    assert all(torch.equal(first[layer], again[layer]) for layer in (0, 2))


def test_only_missing_layers_are_computed(lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = moments_of(lm, [2])
    moments_of(lm, [0], cache=tmp_path)
    record, asked = lm.record, []

    def watched(batch: Any, modules: list[torch.nn.Module]) -> Any:
        asked.append(modules)
        return record(batch, modules)

    monkeypatch.setattr(lm, "record", watched)
    assert torch.equal(moments_of(lm, [0, 2], cache=tmp_path)[2], alone[2])
    assert all(modules == [lm.projections[2]] for modules in asked)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", ["weights", "text", "max_length", "corpus_tokens"])
def test_other_moments_are_not_taken_from_the_cache(lm: EditableLM, tmp_path: Path, change: str) -> None:
    options: dict[str, Any] = {"cache": tmp_path, "max_length": 9, "corpus_tokens": 30}
    before = moments_of(lm, [1], **options)
    texts = TEXTS
    if change == "weights":
        apply_update(lm, 0, update_for(lm, 0))
    elif change == "text":
        texts = TEXTS[::-1]
    else:
        options[change] = 8
    after = moments_of(lm, [1], texts, **options)
    assert not torch.allclose(before[1], after[1])
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("texts", "options", "files"),
    [
        (TEXTS[::-1], {}, 2),
        (("".join(TEXTS[:2]), *TEXTS[2:]), {}, 2),
        (TEXTS, {"corpus": TEXTS[:1]}, 2),
        (TEXTS, {"batch_tokens": 7}, 2),
        (TEXTS, {"corpus_tokens": None}, 2),
        (TEXTS, {"max_length": 128}, 1),
        (TEXTS, {"max_length": 4096}, 1),
        (TEXTS, {"heldout_documents": 3}, 1),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_decides_about_moments_decides_about_their_file(
    lm: EditableLM, tmp_path: Path, texts: tuple[str, ...], options: dict[str, Any], files: int
) -> None:
    moments_of(lm, [1], cache=tmp_path)
    moments_of(lm, [1], texts, cache=tmp_path, **options)
    assert len(list(tmp_path.glob("moments-*"))) == files


def test_a_broken_file_in_the_cache_is_computed_again(
    lm: EditableLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = moments_of(lm, [1], cache=tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    assert torch.equal(moments_of(lm, [1], cache=tmp_path)[1], first[1])
    assert "cannot be read" in caplog.text
    assert file.read_bytes() == whole


def test_a_full_disk_costs_a_warning_and_not_the_run(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "save_file", full)
    monkeypatch.setattr(moments, "SAVE_EVERY", 0.0)
    found = moments_of(lm, [1], batch_tokens=20, cache=tmp_path)
    assert torch.equal(found[1], moments_of(lm, [1], batch_tokens=20)[1])
    assert "cannot be written" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_killed_pass_continues_and_gives_the_same_matrix(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"batch_tokens": 20}
    expected = moments_of(lm, [0, 1], **options)
    monkeypatch.setattr(moments, "SAVE_EVERY", 0.0)
    record, calls = lm.record, []

    def killed_after_two(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return record(*arguments)

    monkeypatch.setattr(lm, "record", killed_after_two)
    with pytest.raises(KeyboardInterrupt):
        moments_of(lm, [0, 1], **options, cache=tmp_path)
    assert len(list(tmp_path.glob("partial-*.safetensors"))) == 1
    found = moments_of(lm, [0, 1], **options, cache=tmp_path)
    assert len(calls) == 3 + len(TEXTS) - 2
    assert all(torch.equal(found[layer], expected[layer]) for layer in (0, 1))
    assert not list(tmp_path.glob("partial-*"))


CORPUS = tuple(f"{text} {number}" for number in range(6) for text in TEXTS)


def draw(number: int, corpus: tuple[str, ...] = CORPUS) -> tuple[str, ...]:
    """What is left of the corpus without every eighth document."""
    return tuple(text for i, text in enumerate(corpus) if i % 8 != number)


def in_float64(lm: EditableLM) -> EditableLM:
    lm.model.to(dtype=torch.float64)  # type: ignore[call-arg]
    return lm


def no_more_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EditableLM, "record", lambda *_: pytest.fail("a pass over text"))


@pytest.mark.parametrize("corpus_tokens", [None, 300, 301, 400])
@pytest.mark.parametrize("texts", [draw(0), draw(3), CORPUS, (*draw(1), "A new document."), (*draw(2), *draw(2)[:2])])
def test_sums_over_the_corpus_are_corrected_to_those_of_the_text(
    lm: EditableLM, texts: tuple[str, ...], corpus_tokens: int | None
) -> None:
    options: dict[str, Any] = {"batch_tokens": 60, "corpus_tokens": corpus_tokens}
    direct = moments_of(in_float64(lm), [0, 2], texts, **options)
    found = moments_of(lm, [0, 2], texts, corpus=CORPUS, **options)
    for layer, moment in direct.items():
        assert (found[layer] - moment).norm() <= 1e-10 * moment.norm()


def test_another_draw_reads_only_what_is_different(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"corpus": CORPUS, "corpus_tokens": 420, "batch_tokens": 1}
    rows, record = list[int](), lm.record

    def watched(batch: Any, modules: list[torch.nn.Module]) -> Any:
        rows.append(len(batch.lengths))
        return record(batch, modules)

    monkeypatch.setattr(lm, "record", watched)
    moments_of(lm, [1], draw(0), cache=tmp_path, **options)
    first = sum(rows)
    rows.clear()
    moments_of(lm, [1], draw(1), cache=tmp_path, **options)
    assert 0 < sum(rows) <= 8 < first
    monkeypatch.undo()
    no_more_text(monkeypatch)
    for number in (0, 1):
        moments_of(lm, [1], draw(number), cache=tmp_path, **options)


@pytest.mark.parametrize("number", [0, 1])
def test_a_cold_and_a_warm_cache_and_none_give_the_same_bits(lm: EditableLM, tmp_path: Path, number: int) -> None:
    options: dict[str, Any] = {"corpus": CORPUS, "batch_tokens": 60}
    none = moments_of(lm, [0, 2], draw(number), **options)
    moments_of(lm, [0], draw(4), cache=tmp_path, **options)  # another run's corpus
    for folder in (tmp_path / "new", tmp_path, tmp_path):
        found = moments_of(lm, [0, 2], draw(number), cache=folder, **options)
        assert all(torch.equal(found[layer], none[layer]) for layer in (0, 2))
    assert not torch.equal(none[0], moments_of(lm, [0, 2], draw(5), **options)[0])


def test_text_that_has_little_of_the_corpus_is_read_directly(lm: EditableLM, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = CORPUS[: len(CORPUS) // 2]
    direct = moments_of(lm, [1], texts)[1]
    monkeypatch.setattr(moments, "MOST", 0.0)
    assert torch.equal(moments_of(lm, [1], draw(0), corpus=CORPUS)[1], moments_of(lm, [1], draw(0))[1])
    monkeypatch.undo()
    assert torch.equal(moments_of(lm, [1], texts, corpus=CORPUS)[1], direct)
    assert not torch.equal(moments_of(lm, [1], draw(0), corpus=CORPUS)[1], moments_of(lm, [1], draw(0))[1])


def test_keys_of_a_float64_model_are_not_rounded(lm: EditableLM) -> None:
    (record,) = in_float64(lm).record(batch_of(lm, TEXTS[:1]), [lm.projections[1]])
    expected = record.input[0].mT @ record.input[0] / record.input.shape[1]
    assert torch.allclose(moments_of(lm, [1], TEXTS[:1])[1], expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("killed", [1, 4, 20, 26])
def test_a_killed_run_continues_in_the_corpus_and_in_what_is_different(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    options: dict[str, Any] = {"corpus": CORPUS, "batch_tokens": 1}
    expected = moments_of(lm, [0, 1], draw(0), **options)
    monkeypatch.setattr(moments, "SAVE_EVERY", 0.0)
    record, calls = lm.record, []

    def sometimes_killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == killed:
            raise KeyboardInterrupt
        return record(*arguments)

    monkeypatch.setattr(lm, "record", sometimes_killed)
    with pytest.raises(KeyboardInterrupt):
        moments_of(lm, [0, 1], draw(0), cache=tmp_path, **options)
    found = moments_of(lm, [0, 1], draw(0), cache=tmp_path, **options)
    assert len(calls) == len(CORPUS) + len(CORPUS) - len(draw(0)) + 1
    assert all(torch.equal(found[layer], expected[layer]) for layer in (0, 1))
    assert not list(tmp_path.glob("partial-*"))


def test_a_cache_that_cannot_be_written_costs_a_warning(
    lm: EditableLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    assert torch.equal(moments_of(lm, [1], cache=tmp_path / "file")[1], moments_of(lm, [1])[1])
    assert "cannot be written" in caplog.text
