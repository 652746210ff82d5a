"""Draws from what the model answers, and the command that lists it."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from data import UnlearnDataModule
from tests.conftest import DEMO, SHORT_RUN, command_line, train_py
from zu_lightning import EditableLM, EditingModule, ReadingOptions, Request

MODEL = f"--model={DEMO / 'model'}"
FACTS = f"--path={DEMO / 'facts.jsonl'}"
SURE = 0.999
"""A probability that the demo model gives to some of its answers."""


def listed(folder: Path, *options: str) -> list[list[str]]:
    """The lines of the command's file, without the header."""
    train_py(["known", MODEL, FACTS, f"--out={folder / 'known.tsv'}", f"--cache={folder / 'cache'}", *options])
    header, *lines = (folder / "known.tsv").read_text().splitlines()
    assert header == "# id\tprobability\tmargin"
    return [line.split("\t") for line in lines]


@pytest.fixture(scope="module")
def sure(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the command has written which answers are sure."""
    folder = tmp_path_factory.mktemp("known")
    lines = listed(folder, f"--at_least={SURE}")
    assert 100 < len(lines) < 1700
    assert all(float(probability) >= SURE and float(margin) > 0 for _, probability, margin in lines)
    return folder


def drawn(folder: Path, stage: str = "validate", **options: Any) -> Request:
    """The request of a run whose cache is that of the command."""
    data = UnlearnDataModule(
        str(DEMO / "facts.jsonl"), str(DEMO / "corpus.txt"), str(DEMO / "heldout.txt"),
        **{"forget_num": 5, "retain_num": 20} | options,
        reading=ReadingOptions(corpus_documents=5, heldout_documents=2), cache=str(folder / "cache"),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, logger=False, enable_progress_bar=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    module = EditingModule(model_name_or_path=str(DEMO / "model"))
    data.connect(module)
    data.trainer = module.trainer = trainer
    data.setup(stage)
    return data.request


def names_of(request: Request) -> list[str]:
    return [fact.id for fact in (*request.forget, *request.retain, *request.protect)]


def test_only_facts_that_the_model_answers_are_drawn_and_nothing_is_measured_twice(
    sure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EditableLM, "logits", lambda *_: pytest.fail("the model was asked again"))
    request = drawn(sure, known=SURE)
    ids = {line.partition("\t")[0] for line in (sure / "known.tsv").read_text().splitlines()}
    assert set(names_of(request)) <= ids
    assert not set(names_of(drawn(sure))) <= ids
    assert len(request.all_facts) == 1800
    from_file = drawn(sure, ids_file=str(sure / "known.tsv"))
    assert names_of(from_file) == names_of(request)
    assert len(from_file.all_facts) == len(ids) - 1


def test_facts_that_are_named_are_kept(sure: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = {line.partition("\t")[0] for line in (sure / "known.tsv").read_text().splitlines()}
    everybody = [fact.id for fact in drawn(sure).all_facts]
    unsure = [name for name in everybody if name not in ids]
    named = [unsure[0], next(name for name in everybody if name in ids)]
    request = drawn(sure, known=SURE, forget_ids=named, retain_ids=unsure[1:2])
    assert names_of(request)[:3] == [*named, unsure[1]]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the model does not answer 2 of the 3 facts that are given or named by ids"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.known=2"], "--data.known is 2.0: give true, false, or a probability above 0 and at most 1"),
        (["--data.known=true", "--model.layers=[9]"], "--model.layers is [9]: layers [9] do not exist"),
        (["--data.known=true", "--data.forget_ids=[nobody]"], "--data.forget_ids is ['nobody']: these are not ids"),
    ],
)  # fmt: skip
def test_bad_input_stops_before_a_model_is_loaded(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EditableLM, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, *SHORT_RUN, *options))
    assert message in str(stopped.value.code)


def test_a_model_that_answers_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, *SHORT_RUN, "--data.known=true", configs=("demo", "qwen3", "tiny")))
    assert "--data.forget_num is 2: the model answers 0 of 1800 facts, and 0 are left" in str(stopped.value.code)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(["known", MODEL, FACTS, f"--out={tmp_path}"])
    assert stopped.value.code == f"train.py: error: --out is '{tmp_path}': it is a folder: name a file."
