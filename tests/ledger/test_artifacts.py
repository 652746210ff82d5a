"""What still holds forgotten texts or old weights is found."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.ledger.conftest import LAYERS, Project, people
from zu_lightning.ledger import RevertEntry
from zu_lightning.ledger.artifacts import ResidualArtifact, residual_artifacts
from zu_lightning.lm.export import export_model
from zu_lightning.lm.fingerprint import open_cache


def found(project: Project, folder: Path) -> dict[str, ResidualArtifact]:
    return {str(one.path.relative_to(folder)): one for one in residual_artifacts(project.ledger, [folder], [])}


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
    assert "restores its facts" in update.holds[0]
    assert keys.needed == update.needed == "later requests"


def test_adapters_are_found_and_facts_that_were_solved_again_count_once(with_facts: Project, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"a": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    (adapter,) = found(with_facts, folder).values()
    assert adapter.holds == ["an adapter: subtracting it from the edited weights restores its facts"]
    assert not adapter.needed
    with_facts.ledger.append(RevertEntry(2, "", 1, dependent=[1], weights={"after": {}}))
    with_facts.add(people(4))
    here = found(with_facts, with_facts.folder)
    assert here["requests/0003/facts.jsonl"].holds == ["text of 4 forgotten facts"]


def test_the_texts_of_a_request_that_waits_to_be_solved_again_are_needed(project: Project) -> None:
    facts = people(2)
    project.add(facts[:1])
    project.add(facts[1:]).append(RevertEntry(3, "", 1, dependent=[2], weights={"after": {}}))
    here = found(project, project.folder)
    assert here["requests/0002/facts.jsonl"].needed == "solving request 2 again"
    assert not here["requests/0001/facts.jsonl"].needed


def test_what_a_process_that_was_killed_has_left_among_the_requests_can_go(with_facts: Project) -> None:
    request = with_facts.ledger.folder_of(1)
    shutil.copytree(request, stray := request.with_name(".0002.123-456.partial"))
    here = found(with_facts, stray)
    assert list(here) == ["facts.jsonl", "keys.safetensors", "update.safetensors"]
    assert not any(one.needed for one in here.values())


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


@pytest.mark.parametrize("kind", ["keys", "outputs", "targets", "values", "varied_keys"])
def test_hidden_states_are_found_in_a_cache(kind: str, with_facts: Project, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "cache", with_facts.lm)
    cache.rows(kind, lambda: torch.zeros(2, 3), 2)
    (file,) = (tmp_path / "cache").iterdir()
    file.with_name(f".{file.name}.123-456.partial").touch()
    cache.tensor("moments", lambda: torch.zeros(3))
    here = found(with_facts, tmp_path / "cache")
    assert list(here) == [f".{file.name}.123-456.partial", file.name]
    assert {one.needed for one in here.values()} == {""}
    assert all(one.holds == ["hidden states of forgotten facts"] for one in here.values())


def test_a_file_that_only_looks_like_tensors_is_passed_over(with_facts: Project, tmp_path: Path) -> None:
    (folder := tmp_path / "run").mkdir()
    for name in ("a.safetensors", "b.pt"):
        (folder / name).write_text("no tensors")
    assert found(with_facts, folder) == {}
