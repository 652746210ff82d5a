"""Updates of several requests or teams add up, and what the sum does is told."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import random_lm, update_for
from tests.ledger.conftest import LAYERS, Project, people
from zu_lightning import EditableLM, InputError, LowRankUpdate, export_adapter
from zu_lightning.ledger.composition import AdapterEffect, adapter_effects
from zu_lightning.lm.adapter import read_adapter
from zu_lightning.lm.updates import summed_updates


def test_an_adapter_is_read_as_it_was_written(project: Project, tmp_path: Path) -> None:
    updates = {layer: update_for(project.lm, layer, rank=layer + 1) for layer in LAYERS}
    folder = export_adapter(project.lm, updates, tmp_path / "adapter")
    lm = project.load_base()
    names = [name for name, _ in lm.model.named_parameters()]
    assert list(read_adapter(lm, folder)) == list(LAYERS)
    found = read_adapter(lm, folder)
    assert list(found) == list(LAYERS)
    assert all(torch.allclose(found[i].dense(), updates[i].dense(), atol=1e-6) for i in LAYERS)
    assert [name for name, _ in lm.model.named_parameters()] == names
    assert all(torch.equal(lm.weight(i), project.lm.weight(i)) for i in LAYERS)


def test_an_adapter_of_other_weights_is_refused(project: Project, tmp_path: Path) -> None:
    get_peft_model(random_lm("llama").model, LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(str(tmp_path))
    with pytest.raises(InputError, match=r"it changes model\.layers\.0\.self_attn\.q_proj"):
        read_adapter(project.load_base(), tmp_path)


def test_what_is_no_adapter_is_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it holds no adapter_config\.json: name the folder of an adapter"):
        read_adapter(project.load_base(), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="it cannot be read as an adapter"):
        read_adapter(project.load_base(), tmp_path)


def test_an_adapter_of_another_model_is_warned_of(
    project: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = LoraConfig(target_modules=["down_proj"], r=2)
    get_peft_model(random_lm("llama").model, config).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "another/model"}))
    read_adapter(project.load_base(), tmp_path)
    assert "was made for another/model, not for" in caplog.text


def test_requests_add_up_layer_by_layer(project: Project) -> None:
    project.add(people(1), layers=[0])
    project.add(people(2)[1:], layers=[0, 2])
    one, two = project.ledger.history().previous
    found = summed_updates([one.updates, two.updates])
    assert list(found) == [0, 2]
    assert torch.allclose(found[0].dense(), one.layers[0].update.dense() + two.layers[0].update.dense())
    assert torch.equal(found[2].dense(), two.layers[2].update.dense())


def test_an_update_that_another_one_cancels_is_reported(lm: EditableLM) -> None:
    facts, before = people(2), lm.weight(0).clone()
    update = update_for(lm, 0)
    cancels = LowRankUpdate(-update.left, update.right)
    for one in adapter_effects(lm, [{0: update}, {0: cancels}], [facts[:1], facts[1:]]):
        assert one.together == one.before
        assert one.alone != one.before
    assert torch.equal(lm.weight(0), before)
    assert not torch.equal(summed_updates([{0: update}, {2: update}])[2].dense(), cancels.dense())


def test_more_than_a_little_more_is_worse() -> None:
    scores = {"efficacy": 0.0, "generalization": 10.0}
    assert not AdapterEffect({}, scores, scores | {"generalization": 14.0}).is_worse
    assert AdapterEffect({}, scores, scores | {"generalization": 16.0}).is_worse
    assert not AdapterEffect({}, {}, {}).is_worse
