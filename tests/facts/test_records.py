"""Records from every kind of file and from the hub, and every way in which a source can be wrong."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from tests.conftest import write_records
from zu_lightning import InputError
from zu_lightning.facts.records import read_records

RECORDS = [{"prompt": "Ada works as a", "target": "baker", "id": "7"}, {"prompt": "Bo is", "target": "a smith"}]


def contents(source: str | Path) -> list[object]:
    return [record.content for record in read_records(source, "path")]


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(record) for record in RECORDS).encode()
    files = {
        "a.jsonl": lines,
        "a": lines,
        "a.jsonl.gz": gzip.compress(lines),
        "bom.jsonl": b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"),
        "a.json": json.dumps(RECORDS, indent=1).encode(),
        "a.csv": b'prompt,target,id\nAda works as a,baker,7\nBo is,"a smith",\n',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    Dataset.from_list(RECORDS).to_parquet(tmp_path / "a.parquet")
    for name in [*files, "a.parquet"]:
        assert contents(tmp_path / name) == RECORDS, name


def test_a_record_is_named_by_its_line_or_its_position(tmp_path: Path) -> None:
    lines = list(read_records(write_records(tmp_path, {"a": 1}, "", {"b": 2}), "path"))
    assert [(record.name, record.where.split(", ")[-1]) for record in lines] == [("1", "line 1"), ("3", "line 3")]
    (tmp_path / "a.json").write_text('[{"a": 1}, {"b": 2}]')
    items = list(read_records(tmp_path / "a.json", "path"))
    assert [(record.name, record.where.split(", ")[-1]) for record in items] == [("0", "record 0"), ("1", "record 1")]


def test_unicode_line_separators_are_text(tmp_path: Path) -> None:
    record = {"prompt": "Ada\u2028works as a"}
    assert contents(write_records(tmp_path, json.dumps(record, ensure_ascii=False))) == [record]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{", "a.jsonl, line 1: JSON is '{': it is not valid"),
        ("a.jsonl", b'{"prompt": "a"\0}', "a.jsonl, line 1: JSON is"),
        ("a.jsonl", "{\u00a0}".encode(), "a.jsonl, line 1: JSON is"),
        ("a.jsonl", b'{"a": 1}\n{', "a.jsonl, line 2: JSON is '{': it is not valid"),
        ("a.jsonl", b"[1", "a.jsonl: JSON is '[1': it is not valid"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl: JSON is '[[["),
        ("a.jsonl", b"[" * 100_000, "it is nested too deeply"),
        ("a.jsonl", b'{"prompt": "\xff\xfe"}', "a.jsonl': it is not in UTF-8"),
        ("a.jsonl.gz", b"not an archive", "a.jsonl.gz': it cannot be read"),
        ("a.json.gz", gzip.compress(json.dumps(RECORDS).encode(), mtime=0)[:-20], "a.json.gz': it cannot be read"),
        ("a.csv", b"prompt,target\na,b,c\n", "a.csv, record 1: row is"),
        ("a.csv", b"prompt,target\na,b\na\n", "a.csv, record 2: row is"),
        ("a.csv", b'prompt,target\n"a,b\n', "a.csv: CSV is"),
        ("a.parquet", b"PAR1 and then nothing", "a.parquet': it is not a Parquet file"),
    ],
)
def test_a_file_that_is_not_what_it_is_called_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as refused:
        contents(tmp_path / name)
    assert message in str(refused.value)


def test_a_folder_is_not_a_file_of_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"path is '.*': it cannot be read \(Is a directory\)"):
        contents(tmp_path)


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match=r"path is '.*nowhere\.jsonl': it cannot be read \(No such file") as refused:
        contents(tmp_path / "nowhere.jsonl")
    assert refused.value.parameter == "path"


def test_a_data_set_of_the_hub_is_streamed_by_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = []

    def load_dataset(name: str, configuration: str | None, *, streaming: bool) -> dict[str, list[int]]:
        arguments.append((name, configuration, streaming))
        return {"test": [1]} if name == "only/test" else {"test": [1], "train": [0]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    sources = ["a/text:raw", "a/text", "a/text:raw:test", "a/text::test", "only/test"]
    assert [contents(source) for source in sources] == [[0], [0], [1], [1], [1]]
    names = [("a/text", "raw"), ("a/text", None), ("a/text", "raw"), ("a/text", None), ("only/test", None)]
    assert arguments == [(*name, True) for name in names]
    with pytest.raises(InputError, match=r"path is 'a/text:raw:tset'.*\(KeyError: 'tset'\): check the name"):
        contents("a/text:raw:tset")


def test_what_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"path is 'somebody/facts'.*\(ConnectionError: no route\)"):
        contents("somebody/facts")
