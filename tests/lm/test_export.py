"""What is exported is the edited model, for every architecture."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.conftest import TEXTS, train_tokenizer
from tests.test_lm import update_for
from zu_lightning import EditableLM, InputError, LowRankUpdate, check_export, export_adapter, export_model


@pytest.fixture
def saved(any_lm: EditableLM, tmp_path: Path) -> EditableLM:
    """A model that came from a directory, as real ones do, edited in two layers, one of them twice."""
    any_lm.model.save_pretrained(tmp_path / "base")
    train_tokenizer().save_pretrained(tmp_path / "base")
    lm = EditableLM.from_pretrained(tmp_path / "base")
    for layer in (0, 2, 2):
        lm.apply(layer, update_for(lm, layer))
    return lm


def test_both_exports_are_the_edited_model(saved: EditableLM, tmp_path: Path) -> None:
    model = export_model(saved, tmp_path / "model")
    adapter = export_adapter(saved, tmp_path / "adapter")
    found = check_export(saved, model, adapter, TEXTS)
    assert found.model < 1e-6
    assert found.adapter < 1e-4
    assert found.edit > 1e-3
    assert check_export(saved, tmp_path / "base", adapter, TEXTS).model == pytest.approx(found.edit)


def test_unload_gives_the_base_model_back_exactly(saved: EditableLM, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    unloaded = PeftModel.from_pretrained(base, export_adapter(saved, tmp_path / "adapter")).unload()
    after = unloaded.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_adapter_has_no_superfluous_rank(lm: EditableLM, tmp_path: Path) -> None:
    update = update_for(lm, 1, rank=2)
    lm.apply(1, LowRankUpdate(torch.cat([update.left, update.left], 1), torch.cat([update.right, update.right])))
    adapter = PeftModel.from_pretrained(lm.model, export_adapter(lm, tmp_path / "adapter"))
    assert next(iter(adapter.peft_config.values())).r == 2


def test_an_interrupted_export_leaves_the_old_one(
    lm: EditableLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_model(lm, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lm.tokenizer, "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        export_model(lm, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_an_edit_there_is_no_adapter(lm: EditableLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing has been edited"):
        export_adapter(lm, tmp_path / "adapter")


def test_nothing_else_is_overwritten(lm: EditableLM, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious.txt").touch()
    with pytest.raises(InputError, match="holds something else"):
        export_model(lm, tmp_path / "runs")
    assert (tmp_path / "runs" / "precious.txt").exists()


def test_the_unedited_model_is_not_overwritten(lm: EditableLM, tmp_path: Path) -> None:
    base = EditableLM.from_pretrained(export_model(lm, tmp_path / "base"))
    with pytest.raises(InputError, match="where the unedited model came from"):
        export_model(base, tmp_path / "base")
