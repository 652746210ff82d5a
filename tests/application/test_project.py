"""Requests that come one after another: each is recorded, and the earlier ones stay in effect."""

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import zu_lightning.ledger.commands as commands
from callbacks import Measure, Resume
from data import UnlearnDataModule
from tests.conftest import DEMO, ROOT, SHORT_RUN, command_line, latest_run, run, train_py
from zu_lightning import EditableLM, InputError, Results
from zu_lightning.ledger import Ledger, locked
from zu_lightning.ledger.files import write_facts
from zu_lightning.modules.outputs import checkpoint_path
from zu_lightning.serving.command import request_of

WEIGHT = "model.layers.0.mlp.down_proj.weight"


def options(root: Path) -> tuple[str, ...]:
    """Of a short run on a project."""
    return (*SHORT_RUN, f"--data.project={root / 'project'}", f"--data.cache={root / 'cache'}")


@pytest.fixture(scope="module")
def two_requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two requests were carried out; the second one's run is version_1."""
    root = tmp_path_factory.mktemp("two_requests")
    for _ in range(2):
        run(root, *options(root), "--data.known=true")
    return root


def second_run(root: Path) -> Path:
    """The folder of the second run: one that is refused later may leave a folder, too."""
    return root / "lightning_logs" / "version_1"


@pytest.fixture
def project_root(two_requests: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return shutil.copytree(two_requests, tmp_path / "root")


def weight_in(run_folder: Path) -> torch.Tensor:
    return load_file(run_folder / "model" / "model.safetensors")[WEIGHT]


def test_what_the_base_model_answers_is_measured_once_for_all_requests(two_requests: Path) -> None:
    assert len([*(two_requests / "cache").glob("known-*")]) == 1


def test_a_request_starts_from_the_base_model_and_all_earlier_updates(two_requests: Path) -> None:
    first, second = Ledger.read(two_requests / "project").active
    assert first.weights["after"] == second.weights["before"] != first.weights["before"]
    assert not first.facts.keys() & second.facts.keys()
    assert set(Results.read(second_run(two_requests)).forgotten) == second.facts.keys()
    history = Ledger.read(two_requests / "project").history()
    base = EditableLM.from_pretrained(DEMO / "model").weight(0)
    total = base + sum(one.layers[0].update.dense() for one in history.previous)
    assert torch.allclose(weight_in(second_run(two_requests)).double(), total, atol=1e-4)
    adapter = load_file(second_run(two_requests) / "adapter" / "adapter_model.safetensors")
    left, right = (adapter[f"base_model.model.{WEIGHT.removesuffix('.weight')}.lora_{name}.weight"] for name in "BA")
    assert torch.allclose(base + left @ right, weight_in(second_run(two_requests)).float(), atol=1e-3)


def test_earlier_facts_are_asked_again_and_reported(two_requests: Path) -> None:
    _, second = Ledger.read(two_requests / "project").active
    assert set(second.previous_scores) == {"1"}
    results = Results.read(second_run(two_requests))
    assert results.earlier["after"]["1"]["efficacy"] == second.previous_scores["1"]["efficacy"]
    assert results.earlier["before"]["1"]["efficacy"] <= 100
    assert "Previous requests" in (second_run(two_requests) / "report.html").read_text()


def test_what_a_model_contains_is_verified(two_requests: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = str(two_requests / "project")
    caplog.set_level("INFO")
    commands.main(["verify", project, str(second_run(two_requests) / "model")])
    assert "contains requests [1, 2]; the ledger has [1, 2]" in caplog.text
    assert "exactly those after line 2" in caplog.text
    with pytest.raises(SystemExit) as stopped:
        commands.main(["verify", project, str(DEMO / "model")])
    assert stopped.value.code == 1
    with pytest.raises(InputError, match="lines were removed"):
        commands.main(["verify", project, str(DEMO / "model"), f"--head={'1' * 64}"])


def test_the_data_of_a_run_are_read_as_the_run_did_whatever_requests_came_since(
    two_requests: Path, tmp_path: Path
) -> None:
    for number, entry in enumerate(Ledger.read(two_requests / "project").active):
        folder = two_requests / "lightning_logs" / f"version_{number}"
        with contextlib.chdir(ROOT):
            request = request_of(folder)
        assert {fact.id for fact in request.forget} == entry.facts.keys()
        assert [one.number for one in request.previous] == list(range(1, number + 1))
        names = [fact.id for fact in request.forget]
        data = UnlearnDataModule(
            path=str(DEMO / "facts.jsonl"), corpus=str(DEMO / "corpus.txt"), forget_ids=names, retain_num=3,
            project=str(two_requests / "project"),
        )  # fmt: skip
        data.setup("validate")
        assert data.request.number == number + 1
        # Files without ids have the same ones.
        other = replace(request.forget[0], target="what nobody has asked for")
        for facts, expected in ((request.forget, number + 1), ([other, request.forget[1]], 3)):
            write_facts(tmp_path / "facts.jsonl", facts)
            data.forget_path = str(tmp_path / "facts.jsonl")
            data.setup("validate")
            assert data.request.number == expected


@pytest.mark.parametrize("lines", [1, 2])
def test_a_run_that_continues_is_the_request_that_it_was_whether_or_not_it_has_its_line(
    lines: int, two_requests: Path, tmp_path: Path
) -> None:
    ledger = Ledger.read(two_requests / "project")
    torch.save({"settings": {"data.project": repr(ledger.hashes[lines - 1])}}, tmp_path / "last.ckpt")
    # These are the options of the earlier runs, which drew others each time.
    data = UnlearnDataModule(
        str(DEMO / "facts.jsonl"), str(DEMO / "corpus.txt"), forget_num=2, retain_num=3,
        project=str(two_requests / "project"),
    )  # fmt: skip
    data.continues_from = str(tmp_path / "last.ckpt")
    data.setup("fit")
    drawn = {fact.id for fact in data.request.forget}
    assert data.request.number == lines + 1
    assert [drawn == entry.facts.keys() for entry in ledger.active] == [False, lines == 1]


def test_a_fact_is_not_forgotten_twice(two_requests: Path, tmp_path: Path) -> None:
    write_facts(tmp_path / "again.jsonl", Ledger.read(two_requests / "project").facts_of(1))
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(two_requests, *options(two_requests), f"--data.forget_path={tmp_path / 'again.jsonl'}"))
    assert "request 1 of the project has forgotten this fact" in str(stopped.value.code)


@pytest.mark.parametrize("option", ["forget_ids", "retain_ids", "protect_ids"])
def test_an_id_of_a_fact_that_is_forgotten_is_refused_by_its_option(option: str, two_requests: Path) -> None:
    name, *_ = Ledger.read(two_requests / "project").request(2).facts
    project = str(two_requests / "project")
    data = UnlearnDataModule(str(DEMO / "facts.jsonl"), str(DEMO / "corpus.txt"), project=project)
    setattr(data, option, [name])
    with pytest.raises(InputError, match=f"{option} is '{name}': request 2 of the project has forgotten this fact"):
        data.setup("fit")


def test_another_base_model_is_refused(two_requests: Path) -> None:
    edited = second_run(two_requests) / "model"
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(two_requests, *options(two_requests), f"--model.model_name_or_path={edited}"))
    assert "--model.model_name_or_path is" in str(stopped.value.code)
    assert "give the base model, without any request" in str(stopped.value.code)


def test_a_method_without_thin_updates_is_refused(tmp_path: Path) -> None:
    short = [option for option in options(tmp_path) if "latents" not in option]
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, *short, configs=("demo", "methods/npo")))
    assert "GradientModule has no low-rank updates to record" in str(stopped.value.code)
    assert not Ledger.read(tmp_path / "project").entries


def test_two_runs_do_not_work_on_one_project(two_requests: Path) -> None:
    with locked(two_requests / "project"), pytest.raises(SystemExit) as stopped:
        train_py(command_line(two_requests, *options(two_requests)))
    assert "--data.project is" in str(stopped.value.code)
    assert "another process is using it" in str(stopped.value.code)


@pytest.mark.slow
def test_a_request_is_taken_back_and_what_depends_on_it_is_solved_again(
    project_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    project = str(project_root / "project")
    commands.main(["revert", project, "1"])
    ledger = Ledger.read(project)
    undo = ledger.entries[2]
    again = [entry.replaces for entry in ledger.active if entry.replaces]
    assert list(undo.dependent) == again  # type: ignore[union-attr]
    assert not ledger.waiting
    assert ledger.active[0].facts == ledger.request(2).facts
    assert ("it depends, and is solved again" if again else "it is independent, and stays") in caplog.text
    commands.main(["merge", project, str(project_root / "merged")])
    commands.main(["verify", project, str(project_root / "merged" / "model")])
    commands.main(["list", project])
    assert "request 1 reverted" in caplog.text


def test_what_remains_is_listed_and_deleted_only_on_demand(
    project_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    arguments = ["clean", str(project_root / "project"), f"--folders={json.dumps([str(project_root)])}"]
    texts = [*project_root.glob("project/requests/*/facts.jsonl"), *project_root.glob("lightning_logs/*/metrics.json")]
    assert len(texts) == 4
    commands.main(arguments)
    assert all(f"{path}: text of" in caplog.text and path.exists() for path in texts)
    commands.main([*arguments, "--delete=true"])
    assert not [path for path in texts if path.exists()]
    caplog.clear()
    commands.main(arguments)
    assert "can be deleted" not in caplog.text
    # The last model, and all that later requests need, is still there.
    commands.main(["verify", str(project_root / "project"), str(second_run(project_root) / "model")])
    assert len(Ledger.read(project_root / "project").history().previous) == 2


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_line_was_written_is_recorded_once(
    project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Resume, "on_fit_end", die)
        with pytest.raises(RuntimeError, match="killed"):
            run(project_root, *options(project_root))
    before = (project_root / "project" / "ledger.jsonl").read_bytes()
    assert len(Ledger.read(project_root / "project").entries) == 3
    assert checkpoint_path(str(project_root)).exists()
    folder = run(project_root, *options(project_root), "--ckpt_path=last")
    assert (project_root / "project" / "ledger.jsonl").read_bytes() == before
    assert not checkpoint_path(str(project_root)).exists()
    commands.main(["verify", str(project_root / "project"), str(folder / "model")])


@pytest.mark.slow
def test_a_run_that_was_killed_after_its_last_layer_asks_earlier_facts_and_attacks_all_the_same(
    project_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise RuntimeError("killed")

    attacked = (*options(project_root), "--attacks.preset=quick", "--attacks.facts=2", "--attacks.gold=null")
    with monkeypatch.context() as patch:
        patch.setattr(Measure, "on_train_end", die)
        with pytest.raises(RuntimeError, match="killed"):
            run(project_root, *attacked)
    results = Results.read(run(project_root, *attacked, "--ckpt_path=last"))
    third = Ledger.read(project_root / "project").active[2]
    assert third.previous_scores == results.earlier["after"]
    assert set(third.previous_scores) == {"1", "2"}
    assert results.attacks


@pytest.mark.slow
def test_twenty_kills_of_a_third_request_leave_a_ledger_that_verifies_and_the_same_result(
    two_requests: Path, tmp_path: Path
) -> None:
    whole, killed = (shutil.copytree(two_requests, tmp_path / name) for name in ("whole", "killed"))
    run(whole, *options(whole))
    command = [sys.executable, "train.py", *command_line(killed, *options(killed), "--ckpt_path=last")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    began = time.monotonic()
    subprocess.run([*command, "--help"], cwd=ROOT, env=environment, check=True, capture_output=True)
    startup, moments = time.monotonic() - began, random.Random(0)
    for _ in range(20):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(0.5, 3) * startup)
        process.kill()
        process.wait()
        ledger = Ledger.read(killed / "project")
        assert len(ledger.active) in (2, 3)
        assert len(ledger.history().previous) == len(ledger.active)
        if len(ledger.active) == 3:  # to be done once more
            shutil.copytree(two_requests / "project", killed / "project", dirs_exist_ok=True)
            shutil.rmtree(killed / "project" / "requests" / "0003")
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert torch.equal(weight_in(latest_run(killed)), weight_in(latest_run(whole)))
    found, expected = (Ledger.read(root / "project").active[2] for root in (killed, whole))
    assert found.weights == expected.weights
    assert found.scores == expected.scores
    assert found.previous_scores == expected.previous_scores
    assert found.files["update.safetensors"] == expected.files["update.safetensors"]
