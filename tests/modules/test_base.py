"""The scores before, which a run takes from the cache if another one has measured them."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from lightning import Trainer

from data import UnlearnDataModule
from tests.conftest import DEMO, update_for
from zu_lightning import (
    NPO,
    EditableLM,
    EditingModule,
    GradientModule,
    ReadingOptions,
    UnlearnModule,
    ZeroUnlearnGD,
    apply_update,
)
from zu_lightning.gradient.method import WeightChoice


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a model was asked for logits."""
    asked, logits = list[int](), EditableLM.logits

    def watched(lm: EditableLM, *arguments: Any, **options: Any) -> torch.Tensor:
        asked.append(1)
        return logits(lm, *arguments, **options)

    monkeypatch.setattr(EditableLM, "logits", watched)
    return asked


def start(folder: Path, module: UnlearnModule | None = None, *, steps: int = -1, **options: Any) -> UnlearnModule:
    """A run that ends after its evaluation before, with its cache in ``folder``."""
    module = module or EditingModule(ZeroUnlearnGD(solve="descent"), model_name_or_path=str(DEMO / "model"))
    data = UnlearnDataModule(
        str(DEMO / "facts.jsonl"), str(DEMO / "corpus.txt"), str(DEMO / "heldout.txt"),
        **{"forget_num": 2, "retain_num": 3} | options,
        reading=ReadingOptions(corpus_documents=5, heldout_documents=2), cache=str(folder),
    )  # fmt: skip
    trainer = Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder / "run", num_sanity_val_steps=steps,
        max_epochs=1, limit_train_batches=0, use_distributed_sampler=False, logger=False,
        enable_model_summary=False, enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    data.connect(module)
    trainer.fit(module, data)
    return module


def test_scores_before_are_measured_once_for_all_methods(tmp_path: Path, calls: list[int]) -> None:
    first = start(tmp_path)
    assert calls
    assert first.run.before["efficacy"] == 100
    calls.clear()
    weights: WeightChoice
    for weights in get_args(WeightChoice):
        module = GradientModule(NPO(weights=weights), model_name_or_path=str(DEMO / "model"))
        second = start(tmp_path, module)
        assert second.run.before == first.run.before
        assert second.run.before["retain_sure"] == 100
        tables, of_first = (one.run.queries["before"] for one in (second, first))
        assert tables.keys() == of_first.keys()
        assert all(torch.equal(tables[name], of_first[name]) for name in tables)
        assert second.run.after == {}
        assert second.seconds["evaluation"] < first.seconds["evaluation"]
    assert not calls


@pytest.mark.parametrize("options", [{"seed": 1}, {"retain_num": 4}, {"protect_num": 1}, {"steps": 1}], ids=str)
def test_scores_of_another_evaluation_are_not_taken(tmp_path: Path, calls: list[int], options: Any) -> None:
    first = start(tmp_path)
    calls.clear()
    other = start(tmp_path, **options)
    assert calls
    assert other.run.before != first.run.before


class Edited(EditingModule):
    """A module whose model has another weight."""

    def configure_model(self) -> None:
        if not hasattr(self, "lm"):
            self.lm = EditableLM.from_pretrained(self.model_name_or_path)
            apply_update(self.lm, 0, update_for(self.lm, 0))
        super().configure_model()


def test_scores_of_another_model_are_not_taken(tmp_path: Path, calls: list[int]) -> None:
    first = start(tmp_path)
    calls.clear()
    other = start(tmp_path, Edited(ZeroUnlearnGD(solve="descent"), model_name_or_path=str(DEMO / "model")))
    assert calls
    assert other.run.before["perplexity"] != first.run.before["perplexity"]


def test_broken_scores_are_measured_again(tmp_path: Path, calls: list[int], caplog: pytest.LogCaptureFixture) -> None:
    first = start(tmp_path)
    (file,) = tmp_path.glob("before-*")
    file.write_bytes(b"no scores")
    calls.clear()
    assert start(tmp_path).run.before == first.run.before
    assert calls
    assert "cannot be read" in caplog.text
