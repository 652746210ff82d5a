"""What is exported is the edited model, for every architecture."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.conftest import TEXTS, batch_of, update_for
from zu_lightning import (
    EditableLM,
    InputError,
    LowRankUpdate,
    apply_update,
    check_export,
    export_adapter,
    export_model,
)
from zu_lightning.lm.adapter import adapter_rank
from zu_lightning.lm.updates import summed_update

Edited = tuple[EditableLM, dict[int, LowRankUpdate]]


@pytest.fixture
def edited(any_lm: EditableLM, tmp_path: Path) -> Edited:
    """A model that came from a directory, as real ones do, edited in two layers, one of them twice; what was added."""
    any_lm.model.save_pretrained(tmp_path / "base")
    any_lm.tokenizer.save_pretrained(tmp_path / "base")
    lm = EditableLM.from_pretrained(tmp_path / "base")
    updates = {2: summed_update([update_for(lm, 2)] * 2), 0: update_for(lm, 0, rank=1)}
    for layer, update in ((0, updates[0]), (2, update_for(lm, 2)), (2, update_for(lm, 2))):
        apply_update(lm, layer, update)
    return lm, updates


def test_both_exports_are_the_edited_model(edited: Edited, tmp_path: Path) -> None:
    lm, updates = edited
    model, adapter = export_model(lm, tmp_path / "model"), export_adapter(lm, updates, tmp_path / "adapter")
    found = check_export(lm, model, adapter, TEXTS)
    assert found.model < 1e-6
    assert found.adapter is not None
    assert found.adapter < 1e-4
    assert found.edit > 1e-3
    unedited = check_export(lm, tmp_path / "base", None, TEXTS)
    assert unedited.model == pytest.approx(found.edit)
    assert unedited.adapter is None


@pytest.mark.parametrize("any_lm", ["llama"], indirect=True)
def test_what_rounding_a_logit_can_do_is_measured(edited: Edited, tmp_path: Path) -> None:
    lm, _ = edited
    lm.model.bfloat16()
    found = check_export(lm, export_model(lm, tmp_path / "model"), None, TEXTS)
    batch = batch_of(lm, TEXTS)
    logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    largest = logits[batch.attention_mask.bool()].abs().max()
    step = (torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest).item()
    assert step <= found.spacing <= 2 * step


def test_unload_gives_the_base_model_back_exactly(edited: Edited, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    after = PeftModel.from_pretrained(base, export_adapter(*edited, tmp_path / "adapter")).unload().state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_adapter_has_no_superfluous_rank(lm: EditableLM, tmp_path: Path) -> None:
    update = update_for(lm, 1, rank=2)
    folder = export_adapter(lm, {1: summed_update([update, update])}, tmp_path / "adapter")
    assert LoraConfig.from_pretrained(str(folder)).r == 2
    left, right = (load_file(folder / "adapter_model.safetensors")[name] for name in adapter_names(lm, 1))
    assert torch.allclose((left @ right).double(), 2 * update.dense(), atol=1e-6)


def adapter_names(lm: EditableLM, layer: int) -> tuple[str, str]:
    """What PEFT calls the factors d_out x rank and rank x d_in of a layer."""
    module = f"base_model.model.{lm.weight_name(layer)}"
    return f"{module}.lora_B.weight", f"{module}.lora_A.weight"


def test_all_layers_have_one_rank_and_no_scale(lm: EditableLM, tmp_path: Path) -> None:
    updates = {layer: update_for(lm, layer, rank) for layer, rank in ((0, 1), (1, 3))}
    folder = export_adapter(lm, updates, tmp_path / "adapter")
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer, update in updates.items():
        left, right = (tensors[name] for name in adapter_names(lm, layer))
        assert left.shape[1] == right.shape[0] == adapter_rank(folder) == 3
        assert torch.allclose((left @ right).double(), update.dense(), atol=1e-6)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"]
    assert not config["rank_pattern"]
    assert not config["alpha_pattern"]


@pytest.mark.parametrize("any_lm", ["llama"], indirect=True)
def test_rounding_the_factors_to_bfloat16_is_measured(edited: Edited, tmp_path: Path) -> None:
    lm, updates = edited
    model, adapter = export_model(lm, tmp_path / "model"), export_adapter(lm, updates, tmp_path / "adapter")
    found = check_export(lm, model, adapter, TEXTS)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors")
    rounded = check_export(lm, model, adapter, TEXTS)
    assert found.adapter is not None
    assert found.rounded == pytest.approx(rounded.adapter, abs=2 * found.adapter)
    assert rounded.rounded == 0
    assert 10 * found.adapter < float(found.rounded or 0) < found.edit


def test_a_higher_rank_is_cut_to_the_closest_adapter(lm: EditableLM, tmp_path: Path) -> None:
    updates = {layer: update_for(lm, layer, rank) for layer, rank in ((0, 6), (1, 2))}
    tensors = load_file(export_adapter(lm, updates, tmp_path / "adapter", 4) / "adapter_model.safetensors")
    cut, kept = ((tensors[left] @ tensors[right]).double() for left, right in (adapter_names(lm, i) for i in (0, 1)))
    left_out = torch.linalg.svdvals(updates[0].dense())[4:].norm()
    assert (cut - updates[0].dense()).norm() == pytest.approx(left_out)
    assert torch.allclose(kept, updates[1].dense(), atol=1e-6)


def test_an_update_of_zero_is_an_adapter_that_changes_nothing(lm: EditableLM, tmp_path: Path) -> None:
    tokens = batch_of(lm).input_ids
    before = lm.model(tokens).logits
    zero = LowRankUpdate(torch.zeros(16, 2), torch.zeros(2, 40))
    adapted = PeftModel.from_pretrained(lm.model, export_adapter(lm, {1: zero}, tmp_path / "adapter"))
    assert torch.equal(adapted(tokens).logits, before)


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
        export_adapter(lm, {}, tmp_path / "adapter")


def test_an_earlier_export_is_replaced_and_nothing_else(lm: EditableLM, tmp_path: Path) -> None:
    export_adapter(lm, {0: update_for(lm, 0)}, tmp_path / "export")
    export_model(lm, tmp_path / "export")
    assert (tmp_path / "export" / "config.json").exists()
    assert not (tmp_path / "export" / "adapter_config.json").exists()
    precious = tmp_path / "runs" / "precious.txt"
    precious.parent.mkdir()
    precious.touch()
    for name in ("runs", "runs/precious.txt"):
        with pytest.raises(InputError, match=rf"folder is '.*{name}': it holds something other than an exported model"):
            export_model(lm, tmp_path / name)
    assert precious.exists()


def test_the_unedited_model_is_not_overwritten(lm: EditableLM, tmp_path: Path) -> None:
    base = EditableLM.from_pretrained(export_model(lm, tmp_path / "base"))
    with pytest.raises(InputError, match=r"folder is '.*base': the unedited model came from there"):
        export_model(base, tmp_path / "base")
