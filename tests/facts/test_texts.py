"""Retain and held-out text, and every way in which it can be wrong."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from zu_lightning import Fact, InputError, ReadingOptions, read_texts, retain_documents

DOCUMENTS = ["Ada lives in Oslo.", "Bo\u2028does\rnot."]


def test_every_format_gives_the_same_documents(tmp_path: Path) -> None:
    plain = "\r\n".join(["", *DOCUMENTS, "  "]).encode()
    records = "\n".join(json.dumps({"text": text, "id": 1}) for text in DOCUMENTS).encode()
    files = {"a.txt": plain, "a": plain, "a.txt.gz": gzip.compress(plain), "bom.txt": b"\xef\xbb\xbf" + plain}
    files |= {"a.jsonl": records, "a.jsonl.gz": gzip.compress(records)}
    files["a.json"] = json.dumps([{"text": text} for text in DOCUMENTS]).encode()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Dataset.from_list([{"text": text} for text in DOCUMENTS]).to_parquet(tmp_path / "a.parquet")
    for name in [*files, "a.parquet"]:
        assert read_texts(str(tmp_path / name)) == DOCUMENTS, name


def test_text_is_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": [{"text": text} for text in DOCUMENTS]})
    assert read_texts("somebody/wiki:en") == DOCUMENTS


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Ada"}\n{"text": 3}')
    assert read_texts(str(tmp_path / "a.jsonl"), 1) == ["Ada"]


def test_documents_are_drawn_from_all_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(str(i) for i in range(20)))
    source, counts = str(tmp_path / "a.txt"), [0] * 20
    for seed in range(2000):
        drawn = read_texts(source, 5, seed=seed)
        assert len(set(drawn)) == 5
        counts[int(drawn[0])] += 1
    assert 60 < min(counts) <= max(counts) < 140  # 100 expected, in the first place as in any other
    assert read_texts(source, 5, seed=3) == read_texts(source, 5, seed=3) != read_texts(source, 5, seed=4)
    assert sorted(read_texts(source, 100, seed=0)) == sorted(read_texts(source))


def test_documents_of_the_hub_are_drawn_from_a_shuffled_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_list([{"text": str(i)} for i in range(40)]).to_iterable_dataset(num_shards=4)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": rows})
    drawn = read_texts("somebody/wiki", 10, seed=0)
    assert len(set(drawn)) == 10
    assert drawn == read_texts("somebody/wiki", 10, seed=0) != read_texts("somebody/wiki", 10, seed=1)
    assert max(map(int, drawn)) >= 10
    assert read_texts("somebody/wiki", 10) == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt': it holds no text"),
        ("a.txt", b"\xff\xfe\x00", "a.txt': text cannot be read from it"),
        (
            "a.txt.gz",
            gzip.compress(b"Ada lives in Oslo." * 100, mtime=0)[:-20],
            "a.txt.gz': text cannot be read from it",
        ),
        ("a.jsonl", b'{"txt": "Ada"}', "a.jsonl': it holds no text"),
        ("a.jsonl", b'{"text": 3}', "line 1: record is {'text': 3}: it must have a `text` field"),
        ("a.json", b"[1]", "record 0: record is 1: it must have a `text` field"),
        ("a.json", b'[{"text": "Ada"}', "it is not valid"),
        ("a.parquet", b"PAR1", "a.parquet': it is not a Parquet file"),
        ("nowhere.txt", None, "nowhere.txt': text cannot be read from it (No such file"),
    ],
)
def test_malformed_text_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_texts(str(tmp_path / name))
    assert message in str(refused.value)


def test_an_error_names_the_source_as_the_caller_calls_it(tmp_path: Path) -> None:
    for name in ("nowhere.txt", "nowhere.json"):
        with pytest.raises(InputError) as refused:
            read_texts(str(tmp_path / name), parameter="corpus")
        assert refused.value.parameter == "corpus"


def test_retain_text_names_no_forgotten_subject(facts: list[Fact]) -> None:
    corpus = ["A quiet river.", "  ", "Yesterday Ada Novak left.", "Bruno left.", "Bruno Keller left."]
    assert retain_documents(corpus, facts) == ["A quiet river.", "Bruno left."]
    assert retain_documents(corpus, facts[3:]) == [text for text in corpus if text.strip()]


@pytest.mark.parametrize(
    "name", ["corpus_documents", "corpus_tokens", "heldout_documents", "max_length", "batch_tokens"]
)
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_below_one_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(InputError, match=rf"reading\.{name} is {value}: give a positive number") as refused:
        ReadingOptions(**{name: value})
    assert (refused.value.parameter, refused.value.value) == (f"reading.{name}", value)


def test_all_of_the_retain_text_can_be_asked_for() -> None:
    assert ReadingOptions(corpus_tokens=None).corpus_tokens is None
