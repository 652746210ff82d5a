"""A cache that recognizes the model and everything else that its files depend on."""

from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import TEXTS, in_processes, random, random_lm, train_tokenizer, update_for
from zu_lightning import EditableLM, apply_update
from zu_lightning.lm.fingerprint import open_cache, weights_digest
from zu_lightning.lm.tokens import tokenize
from zu_lightning.runtime import cache as cache_module
from zu_lightning.runtime.cache import read_tensors, write_tensors
from zu_lightning.runtime.distributed import rank_slice

CPU = torch.device("cpu")
SQUARE = random(4, 4, seed=0) @ random(4, 4, seed=0).mT
SYMMETRIC = SQUARE + SQUARE.mT


def never() -> Any:
    pytest.fail("computed again")


def test_what_was_computed_is_read_by_another_run(
    lm: EditableLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = open_cache(tmp_path, lm).tensor("keys", lambda: random(3, 2, seed=1), "fact", 0)
    assert not caplog.text
    again = open_cache(tmp_path, random_lm("llama")).tensor("keys", never, "fact", 0)
    assert torch.equal(first, again)
    assert f"computed before is read from {tmp_path}" in caplog.text
    caplog.clear()
    open_cache(tmp_path, random_lm("llama")).tensor("keys", never, "fact", 0)
    assert not caplog.text, "once is enough"


def test_without_a_folder_everything_is_computed_and_nothing_kept(lm: EditableLM) -> None:
    value = random(2, 2, seed=0)
    assert open_cache(None, lm).tensor("keys", lambda: value) is value
    assert open_cache(None, lm).partial_file() is None


def test_a_model_that_is_spread_over_devices_has_no_cache(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EditableLM, "is_dispatched", True)
    open_cache(tmp_path, lm).tensor("keys", lambda: random(2, 2, seed=0))
    assert not list(tmp_path.iterdir())


def test_only_missing_items_are_computed(lm: EditableLM, tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def layers(some: list[int]) -> dict[int, dict[str, torch.Tensor]]:
        asked.append(some)
        return {layer: {"moment": torch.full((2,), float(layer))} for layer in some}

    cache = open_cache(tmp_path, lm)
    for wanted in ([0, 2], [2, 1, 0], [1]):
        found = cache.each("moments", wanted, layers, "text")
        assert list(found) == wanted
        assert all(found[layer]["moment"].tolist() == [layer] * 2 for layer in wanted)
    assert asked == [[0, 2], [1]]


def test_kind_parts_and_their_borders_tell_files_apart(lm: EditableLM, tmp_path: Path) -> None:
    cache = open_cache(tmp_path, lm)
    files = [
        cache.file("keys", "a", 1), cache.file("values", "a", 1), cache.file("keys", "a", 2),
        cache.file("keys", "a1"), cache.file("keys", 1, "a"), cache.partial_file("a", 1),
    ]  # fmt: skip
    assert len(set(files)) == len(files)


def edited(lm: EditableLM) -> EditableLM:
    apply_update(lm, 2, update_for(lm, 2, rank=1))
    return lm


def configured(lm: EditableLM) -> EditableLM:
    lm.model.config.rms_norm_eps = 0.1
    return lm


def in_half_precision(lm: EditableLM) -> EditableLM:
    lm.model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    return lm


def with_another_tokenizer(lm: EditableLM) -> EditableLM:
    return EditableLM(lm.model, train_tokenizer(bos=False))


def with_a_chat_template(lm: EditableLM) -> EditableLM:
    lm.tokenizer.chat_template = "{{ messages[0].content }}"
    return lm


@pytest.mark.parametrize(
    "change", [edited, configured, in_half_precision, with_another_tokenizer, with_a_chat_template]
)
def test_another_model_finds_nothing(lm: EditableLM, tmp_path: Path, change: Any) -> None:
    before = open_cache(tmp_path, lm).file("keys")
    assert open_cache(tmp_path, random_lm("llama")).file("keys") == before
    assert open_cache(tmp_path, change(lm)).file("keys") != before


def test_every_entry_of_a_weight_that_may_be_edited_counts(tmp_path: Path) -> None:
    lm = random_lm("llama")
    size = lm.weight(1).numel()
    assert size // 256 > 1  # the sample of the digest skips entries
    before, sampled = open_cache(tmp_path, lm, [0, 1]).file("keys"), weights_digest(lm)
    with torch.no_grad():
        lm.projections[1].weight.view(-1)[1] += 1e-3  # type: ignore[operator]
    assert weights_digest(lm) == sampled
    assert open_cache(tmp_path, lm, [0, 1]).file("keys") != before


def test_the_same_values_in_another_dtype_have_another_digest(lm: EditableLM) -> None:
    lm.model.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    before = weights_digest(lm)
    lm.model.to(dtype=torch.float32)  # type: ignore[call-arg]
    assert weights_digest(lm) != before


def test_how_a_tokenizer_was_called_last_does_not_matter(lm: EditableLM, tmp_path: Path) -> None:
    before = open_cache(tmp_path, lm).file("keys")
    lm.tokenizer(TEXTS[0], truncation=True, max_length=3)
    assert lm.tokenizer.backend_tokenizer.truncation is not None
    tokenize(lm.tokenizer, TEXTS[0], max_length=5)
    assert open_cache(tmp_path, lm).file("keys") == before


@pytest.mark.parametrize(
    "tensor",
    [
        random(3, 5, seed=0), random(3, 5, seed=0).mT, SYMMETRIC, SYMMETRIC.float(), random(2, 3, 4, seed=0),
        torch.tensor([True, False]), torch.tensor(0.1, dtype=torch.float64),
        random(5, 5, seed=0).mT, random(6, 8, seed=0)[::2, ::2],
    ],
)  # fmt: skip
def test_a_cold_and_a_warm_cache_give_the_same_bits_in_the_same_order(
    lm: EditableLM, tmp_path: Path, tensor: torch.Tensor
) -> None:
    cold = open_cache(tmp_path, lm).tensor("keys", lambda: tensor)
    warm = open_cache(tmp_path, lm).tensor("keys", never)
    for found in (cold, warm):
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    assert cold.stride() == warm.stride()
    if tensor.is_contiguous() or tensor.mT.is_contiguous():
        assert warm.stride() == tensor.stride()


def test_tensors_are_written_whole_or_not_at_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "folder" / "a.safetensors"
    write_tensors(file, {"a": torch.arange(6.0).view(2, 3).mT})
    found = read_tensors(file, CPU)
    assert found
    assert torch.equal(found["a"], torch.arange(6.0).view(2, 3).mT)
    write_tensors(file / "below", {"a": torch.zeros(1)})
    assert "cannot be written" in caplog.text
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_cannot_be_read_is_computed_again(
    lm: EditableLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_tensors(tmp_path / "nowhere.safetensors", CPU) is None
    cache, value = open_cache(tmp_path, lm), random(3, 2, seed=0)
    cache.tensor("keys", lambda: value)
    assert not caplog.text
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for broken in (whole[:-1], b"no tensors", b""):
        file.write_bytes(broken)
        assert torch.equal(cache.tensor("keys", lambda: value), value)
        assert file.read_bytes() == whole
    assert caplog.text.count("cannot be read") == 3


def test_a_file_that_another_process_misses_is_computed_by_all(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = open_cache(tmp_path, lm)
    cache.tensor("keys", lambda: torch.zeros(1))
    monkeypatch.setattr(cache_module, "process", lambda: (1, 2))  # the other one adds nothing to what was found
    assert cache.tensor("keys", lambda: torch.ones(1)).item() == 1
    monkeypatch.undo()
    assert cache.tensor("keys", never).item() == 0  # only the first process writes


ROWS = random(5, 2, 3, seed=0)


def own_rows() -> torch.Tensor:
    return ROWS[rank_slice(5)]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_holds_the_rows_of_all_facts_and_each_process_reads_its_share(
    lm: EditableLM, tmp_path: Path, processes: int
) -> None:
    cache = open_cache(tmp_path / "cache", lm)
    cold = in_processes(processes, lambda: cache.rows("keys", own_rows, 5, "fact"), tmp_path / "cold")
    (file,) = (tmp_path / "cache").iterdir()
    assert np.array_equal(np.load(file), ROWS.numpy())
    warm = in_processes(processes, lambda: cache.rows("keys", never, 5, "fact"), tmp_path / "warm")
    for found in (cold, warm):
        assert torch.equal(torch.cat(found), ROWS)
    assert [rows.stride() for rows in cold] == [rows.stride() for rows in warm]
    assert len(cold[0]) == 5 // processes


def test_rows_that_cannot_be_read_are_computed_again(
    lm: EditableLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = open_cache(tmp_path, lm)
    cache.rows("keys", own_rows, 5)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for broken in (whole[:-1], b"no rows", b""):
        file.write_bytes(broken)
        assert torch.equal(cache.rows("keys", own_rows, 5), ROWS)
        assert file.read_bytes() == whole
    assert caplog.text.count("cannot be read") == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_that_cannot_be_written_are_there_nevertheless(lm: EditableLM, tmp_path: Path, processes: int) -> None:
    (tmp_path / "a file").touch()
    cache = open_cache(tmp_path / "a file" / "below", lm)
    found = in_processes(processes, lambda: cache.rows("keys", own_rows, 5), tmp_path / "processes")
    assert torch.equal(torch.cat(found), ROWS)


def write_often(file: Path) -> None:
    torch.set_num_threads(1)
    for _ in range(20):
        write_tensors(file, {"a": SYMMETRIC})


def test_two_processes_write_and_a_third_reads_at_once(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    write_often(file)
    writers = [get_context("fork").Process(target=write_often, args=(file,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    with ThreadPoolExecutor(1) as reader:
        found = list(reader.map(lambda _: read_tensors(file, CPU), range(40)))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert all(tensors is not None and torch.equal(tensors["a"], SYMMETRIC) for tensors in found)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_eigenvectors_are_those_of_the_matrix_whatever_the_model(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = open_cache(None, lm).eigh(SYMMETRIC)
    cold = open_cache(tmp_path, lm).eigh(SYMMETRIC)
    open_cache(tmp_path, lm).eigh(2 * SYMMETRIC)
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("computed again"))
    warm = open_cache(tmp_path, edited(lm)).eigh(SYMMETRIC.clone())
    for one, two, three in zip(alone, cold, warm, strict=True):
        assert torch.equal(one, two)
        assert torch.equal(one, three)
        assert one.stride() == two.stride() == three.stride()
