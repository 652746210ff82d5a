"""What a data module gives to a run: where runs share what they compute, and what their draws have in common."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data import UnlearnDataModule
from tests.conftest import DEMO
from zu_lightning import ReadingOptions, Request, read_texts


def request_of(root: Path, *, fast_dev_run: bool = False, **options: Any) -> Request:
    """The request of a run under a folder, on the first documents of the demo."""
    defaults: dict[str, Any] = {"path": str(DEMO / "facts.jsonl"), "corpus": str(DEMO / "corpus.txt"), "retain_num": 0}
    data = UnlearnDataModule(**defaults | options, reading=ReadingOptions(corpus_documents=200))
    data.trainer = SimpleNamespace(default_root_dir=str(root), fast_dev_run=fast_dev_run)  # type: ignore[assignment]
    data.setup("fit")
    return data.request


def test_runs_share_a_folder_if_they_are_told_to(tmp_path: Path) -> None:
    assert request_of(tmp_path).cache == tmp_path / "cache"
    assert request_of(tmp_path, cache=str(tmp_path / "grid")).cache == tmp_path / "grid"
    assert request_of(tmp_path, cache=str(tmp_path / "grid"), fast_dev_run=True).cache is None


@pytest.mark.parametrize("heldout", [None, str(DEMO / "heldout.txt")])
def test_all_draws_come_from_one_corpus_and_have_most_of_it(tmp_path: Path, heldout: str | None) -> None:
    first, second = (request_of(tmp_path, heldout=heldout, forget_num=20, seed=seed) for seed in (0, 1))
    assert first.text.corpus == second.text.corpus
    documents = read_texts(str(DEMO / "corpus.txt"), 200)
    assert list(first.text.corpus) == (documents[:180] if heldout is None else documents)
    assert first.text.documents != second.text.documents
    for request in (first, second):
        assert not set(request.heldout) & set(request.text.documents)
        assert len(set(request.text.documents) ^ set(documents[:180] if heldout is None else documents)) < 40
