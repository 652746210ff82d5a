"""Retain and held-out text, and every way in which it can be wrong."""

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset

from zu_lightning import InputError, read_texts

DOCUMENTS = ["Ada lives in Oslo.", "Bo\u2028does not."]


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


def test_no_more_is_read_than_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "Ada"}\n{"text": 3}')
    assert read_texts(str(tmp_path / "a.jsonl"), 1) == ["Ada"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"\xff\xfe\x00", "cannot read text from data.corpus"),
        ("a.txt.gz", gzip.compress(b"Ada lives in Oslo." * 100)[:-20], "cannot read text from data.corpus"),
        ("a.jsonl", b'{"txt": "Ada"}', "holds no text"),
        ("a.jsonl", b'{"text": 3}', r"line 1: `text` must be a text"),
        ("a.json", b"[1]", r"record 0: `text` must be a text"),
        ("a.json", b'[{"text": "Ada"}', "not valid JSON"),
        ("a.parquet", b"PAR1", "no Parquet file"),
    ],
)
def test_malformed_text_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(str(tmp_path / name), field="data.corpus")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.corpus .*nowhere\.txt"):
        read_texts(str(tmp_path / "nowhere.txt"), field="data.corpus")
