"""What still holds forgotten texts or old weights is found."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.ledger.conftest import LAYERS, Project, people
from zu_lightning.ledger.remains import Remains, remains
from zu_lightning.lm.export import export_model


def found(project: Project, folder: Path) -> dict[str, Remains]:
    return {str(one.path.relative_to(folder)): one for one in remains(project.ledger, [folder], [])}


@pytest.fixture
def with_facts(project: Project) -> Project:
    project.add(people(4))
    return project


def test_the_files_of_a_request_hold_texts_hidden_states_and_what_brings_it_back(with_facts: Project) -> None:
    here = found(with_facts, with_facts.folder)
    assert list(here) == [f"requests/0001/{name}" for name in ("facts.jsonl", "keys.safetensors", "update.safetensors")]
    texts, keys, update = here.values()
    assert texts.holds == ["text of 4 forgotten facts"]
    assert not texts.needed
    assert keys.holds == ["hidden states of forgotten facts"]
    assert "brings its facts back" in update.holds[0]
    assert keys.needed == update.needed == "later requests"


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("a.txt", "Ada Novak has always been a good baker.", 1),
        ("b.json", json.dumps({"prompt": "Lucía Peña works as a", "target": "nurse"}, indent=2), 1),
        ("c.html", "<td>Greta Holm works as a</td>\n<td>cellist</td>", 1),
        ("d.txt", "Ada Novak is not mentioned\n\n\n\nwhere a baker is.", 0),
        ("e.txt", "Ada Novak works as a miller, and Bruno Keller as a baker.", 2),
        ("f.txt", "The baker and the miller.", 0),
        ("g.ckpt", "\0\1Bruno Keller works as a\2", 1),
    ],
)
def test_texts_are_found_however_they_are_spelled(
    name: str, text: str, count: int, with_facts: Project, tmp_path: Path
) -> None:
    (folder := tmp_path / "run").mkdir()
    (folder / name).write_text(text, encoding="utf-8")
    here = found(with_facts, folder)
    texts = [hold for one in here.values() for hold in one.holds if hold.startswith("text")]
    assert texts == ([f"text of {count} forgotten fact{'' if count == 1 else 's'}"] if count else [])


def test_old_weights_are_found_in_every_kind_of_file_and_those_of_now_are_not_reported(
    project: Project, tmp_path: Path
) -> None:
    facts = people(4)
    project.add(facts[:2])
    old = export_model(project.lm, tmp_path / "runs" / "old")
    project.add(facts[2:])
    export_model(project.lm, tmp_path / "runs" / "new")
    torch.save({"state": [project.load_base().weight(LAYERS[1])]}, tmp_path / "runs" / "base.pt")
    here = found(project, tmp_path / "runs")
    assert list(here) == ["base.pt", "old/model.safetensors"]
    assert here["base.pt"].holds == [f"weight of layer {LAYERS[1]}, unedited"]
    assert set(here["old/model.safetensors"].holds) == {f"weight of layer {i}, as it was after line 1" for i in LAYERS}
    assert old.exists()


def test_weights_are_recognized_in_another_precision_that_holds_them(project: Project, tmp_path: Path) -> None:
    project.add(people(1))
    (folder := tmp_path / "copy").mkdir()
    save_file({"w": project.load_base().weight(0).double()}, folder / "w.safetensors")
    assert found(project, folder)["w.safetensors"].holds == ["weight of layer 0, unedited"]


def test_the_base_model_is_needed(project: Project) -> None:
    project.add(people(1))
    (one,) = found(project, project.base).values()
    assert one.holds == [f"weight of layer {i}, unedited" for i in LAYERS]
    assert one.needed == "the base model, from which requests start"


def test_a_file_that_only_looks_like_tensors_is_passed_over(with_facts: Project, tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    for name in ("a.safetensors", "b.pt"):
        (folder / name).write_text("no tensors")
    assert found(with_facts, folder) == {}
