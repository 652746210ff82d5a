"""The commands of ``python -m zu_lightning.ledger``, on a project whose requests nothing depends on."""

import json
from pathlib import Path

import pytest
import torch

import zu_lightning.ledger.commands as commands
from tests.conftest import update_for
from tests.ledger.conftest import LAYERS, Project, make_dependent, people
from zu_lightning import EditableLM, InputError, LowRankUpdate, export_adapter
from zu_lightning.ledger.files import write_facts
from zu_lightning.lm.adapter import read_adapter
from zu_lightning.lm.export import export_model


@pytest.fixture
def three(project: Project, caplog: pytest.LogCaptureFixture) -> Project:
    caplog.set_level("INFO")
    for fact in people(3):
        project.add([fact])
    return project


def refusal(*arguments: str) -> object:
    """What a command that is refused says, or its exit status."""
    with pytest.raises((InputError, SystemExit)) as stopped:
        commands.main(list(arguments))
    return stopped.value.code if isinstance(stopped.value, SystemExit) else str(stopped.value)


def test_a_request_is_taken_back_and_the_rest_is_merged_and_verified(
    three: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, merged = str(three.folder), tmp_path / "merged"
    commands.main(["revert", folder, "2"])
    assert "it is independent, and stays" in caplog.text
    assert refusal("revert", folder, "2") == ("number is 2: this request was reverted already.")
    commands.main(["merge", folder, str(merged)])
    commands.main(["verify", folder, str(merged / "model")])
    assert "contains requests [1, 3]; the ledger has [1, 3]" in caplog.text
    adapter = read_adapter(three.load_base(), merged / "adapter")
    whole = EditableLM.from_pretrained(merged / "model")
    for layer in LAYERS:
        added = whole.weight(layer).double() - three.load_base().weight(layer).double()
        assert torch.allclose(adapter[layer].dense(), added, atol=1e-5)
    commands.main(["merge", folder, str(tmp_path / "one"), "--requests=[2]"])
    assert refusal("verify", folder, str(tmp_path / "one" / "model")) == 1
    assert "contains requests [2]; the ledger has [1, 3]" in caplog.text


def test_what_is_to_be_solved_again_is_not_taken_back_where_there_is_no_train_py(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dependent(project, 0.5)
    monkeypatch.chdir(tmp_path)
    assert "train.py, which is not here: run this in the checkout" in str(refusal("revert", str(project.folder), "1"))
    assert len(project.ledger.entries) == 2
    commands.main(["revert", str(project.folder), "2"])
    assert len(project.ledger.entries) == 3


def test_nothing_is_made_of_a_base_model_with_other_weights(three: Project, tmp_path: Path) -> None:
    folder, head = str(three.folder), three.ledger.head
    export_model(three.lm, three.base)
    for command in (["merge", folder, str(tmp_path / "merged")], ["revert", folder, "1"]):
        assert f"base is '{three.base}': its weights (layer 0) are not those" in str(refusal(*command))
    assert not (tmp_path / "merged").exists()
    assert three.ledger.head == head


def test_a_project_stays_in_the_precision_of_its_requests(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    project = Project(tmp_path, kept_in=torch.bfloat16)
    project.lm.model.to(torch.float32)  # type: ignore[arg-type]
    project.add(people(1))
    folder, model = str(project.folder), str(export_model(project.lm, tmp_path / "model"))
    for base in ([], [f"--base={project.base}"]):
        commands.main(["verify", folder, model, *base])
    commands.main(["merge", folder, str(tmp_path / "merged")])
    assert EditableLM.from_pretrained(tmp_path / "merged" / "model").weight(0).dtype == torch.float32
    commands.main(["verify", folder, str(tmp_path / "merged" / "model")])
    assert caplog.text.count("exactly those after line 1\n") == 3


def test_the_requests_are_listed_with_the_hash_of_the_last_line(
    three: Project, caplog: pytest.LogCaptureFixture
) -> None:
    (three.ledger.folder_of(2) / "facts.jsonl").unlink()
    commands.main(["list", str(three.folder)])
    assert "1 facts, texts deleted, in the model; efficacy 0.0" in caplog.text
    assert three.ledger.head in caplog.text
    assert "it contains no ledger" in str(refusal("list", str(three.base)))


def test_adapters_of_two_teams_are_composed_and_checked(
    three: Project, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    update, folders, files = update_for(three.lm, 0), [], []
    for number, fact in enumerate(people(2)):
        folders.append(str(export_adapter(three.load_base(), {2 * number: update}, tmp_path / f"adapter_{number}")))
        files.append(str(tmp_path / f"{number}.jsonl"))
        write_facts(Path(files[-1]), [fact])
    arguments = ["compose", str(three.base), str(tmp_path / "both"), f"--adapters={json.dumps(folders)}"]
    commands.main([*arguments, f"--facts={json.dumps(files)}"])
    assert caplog.text.count("together ") == 2
    both = read_adapter(three.load_base(), tmp_path / "both" / "adapter")
    assert list(both) == [0, 2]
    assert all(torch.allclose(one.dense(), update.dense(), atol=1e-5) for one in both.values())
    assert "name one file of facts for each of 2 adapters" in str(
        refusal(*arguments, f"--facts={json.dumps(files[:1])}")
    )


def test_a_sum_that_gives_facts_back_is_told_by_the_exit_status(
    three: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    update = update_for(three.lm, 0)
    opposite = LowRankUpdate(-update.left, update.right)
    write_facts(tmp_path / "facts.jsonl", people(1))
    folders = [
        str(export_adapter(three.load_base(), {0: one}, tmp_path / name))
        for name, one in (("a", update), ("b", opposite))
    ]
    scores = iter([{"efficacy": 100.0}, {"efficacy": 0.0}, {"efficacy": 100.0}] * 2)
    monkeypatch.setattr("zu_lightning.ledger.composition.evaluate", lambda *_: next(scores))
    files = json.dumps([str(tmp_path / "facts.jsonl")] * 2)
    code = refusal(
        "compose", str(three.base), str(tmp_path / "both"), f"--adapters={json.dumps(folders)}", f"--facts={files}"
    )
    assert code == 1
    assert caplog.text.count("THE SUM ANSWERS MORE THAN THE ADAPTER ALONE") == 2
