"""What a ledger knows of requests, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.ledger.conftest import LAYERS, Project, people
from zu_lightning import InputError, LowRankUpdate, Query, Request, RetainText, read_facts
from zu_lightning.ledger import Ledger, RequestEntry, RevertEntry, locked
from zu_lightning.ledger.entries import active, waiting
from zu_lightning.ledger.files import fact_digest, read_layers, read_stored_facts, write_facts, write_layers
from zu_lightning.ledger.recording import record

REQUEST = RequestEntry(1, "", "", "", {}, {}, {}, {})


def test_a_request_is_known_again_with_its_texts_keys_and_update(project: Project) -> None:
    facts = people(4)
    project.add(facts[:2])
    ledger = project.add(facts[2:])
    assert [entry.number for entry in ledger.active] == [1, 2]
    history = project.ledger.history()
    assert history.head == ledger.head
    assert [one.facts for one in history.previous] == [facts[:2], facts[2:]]
    total = project.load_base()
    for layer in LAYERS:
        added = sum(one.layers[layer].update.dense() for one in history.previous)
        assert torch.allclose(total.weight(layer) + added, project.lm.weight(layer).double(), atol=1e-5)
        assert torch.equal(history.previous[0].layers[layer].keys, project.keys(1, 2))


def test_no_text_is_in_the_ledger_itself(project: Project) -> None:
    facts = people(4)
    project.add(facts)
    text = (project.folder / "ledger.jsonl").read_text()
    assert all(fact.id in text for fact in facts)
    assert not [fact for fact in facts if fact.target in text or (fact.subject or "") in text]


def test_nobody_else_can_read_the_files_of_a_request(project: Project) -> None:
    ledger = project.add(people(1))
    for path in (ledger.folder_of(1), ledger.folder_of(1) / "facts.jsonl", project.folder / "salt"):
        assert path.stat().st_mode & 0o077 == 0


def test_files_of_requests_are_not_overwritten_when_their_lines_are_gone(project: Project) -> None:
    facts = people(4)
    project.add(facts[:2])
    project.add(facts[2:])
    path = project.folder / "ledger.jsonl"
    first, second = path.read_text().splitlines(keepends=True)
    path.write_text(first)  # as if the second run had been killed before it wrote its line
    assert [entry.number for entry in Ledger.read(project.folder).active] == [1]
    path.write_text("")
    with pytest.raises(InputError, match=r"it has 0 lines, but there are files of requests \[2\]: restore it"):
        Ledger.read(project.folder)
    path.unlink()
    with pytest.raises(InputError, match=r"it is missing, but there are files of requests \[1, 2\]: restore it"):
        Ledger.read(project.folder)
    path.write_text(first + second)
    assert [entry.number for entry in Ledger.read(project.folder).active] == [1, 2]


def test_without_texts_a_request_stays_in_effect_and_its_facts_are_recognized_all_the_same(project: Project) -> None:
    facts = people(4)
    ledger = project.add(facts[:2], keeps_texts=False)
    (previous,) = ledger.history().previous
    assert previous.facts == []
    assert previous.size == 2
    renamed = [replace(fact, id=f"other-{fact.id}") for fact in facts]
    assert ledger.forgotten(renamed) == dict.fromkeys([fact.id for fact in renamed[:2]], 1)
    with pytest.raises(InputError, match="request 1 of the project has forgotten this fact"):
        ledger.check_new(renamed[1:])
    ledger.check_new(renamed[2:])


def test_a_digest_tells_nothing_without_the_salt(project: Project, caplog: pytest.LogCaptureFixture) -> None:
    (fact,) = people(1)
    ledger = project.add([fact])
    assert ledger.active[0].facts == ledger.digests_of([fact])
    assert fact_digest(fact, "") not in ledger.active[0].facts.values()
    assert "salt" not in caplog.text
    (project.folder / "salt").unlink()
    assert ledger.active[0].facts != ledger.digests_of([fact])
    assert "salt is missing" in caplog.text
    assert ledger.forgotten([fact]) == {fact.id: 1}
    assert ledger.forgotten([replace(fact, id="other")]) == {}


def test_the_same_request_is_recorded_once(project: Project) -> None:
    facts = people(2)
    ledger = project.add(facts)
    before = (project.folder / "ledger.jsonl").read_bytes()
    assert ledger.ends_in(facts)
    assert not ledger.ends_in(facts[:1])
    request = ledger.until(1).history()
    assert request.previous == []
    again = Request(facts, RetainText([]), number=1, history=request)
    assert record(again, REQUEST, {}, {}).head == ledger.head
    assert (project.folder / "ledger.jsonl").read_bytes() == before


def test_what_was_recorded_meanwhile_is_neither_overwritten_nor_overlooked(project: Project) -> None:
    facts = people(2)
    stale = Request(facts[1:], RetainText([]), number=1, history=project.ledger.history())
    ledger = project.add(facts[:1])
    before = {path: path.read_bytes() for path in sorted(ledger.folder_of(1).iterdir())}
    with pytest.raises(InputError, match="another run has written to it: start again"):
        record(stale, REQUEST, {}, {})
    assert {path: path.read_bytes() for path in sorted(ledger.folder_of(1).iterdir())} == before
    assert project.ledger.head == ledger.head


@pytest.mark.parametrize("name", ["update.safetensors", "keys.safetensors"])
def test_a_file_that_was_changed_or_is_missing_is_refused(name: str, project: Project) -> None:
    ledger = project.add(people(1))
    path = ledger.folder_of(1) / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=rf"{name} was modified"):
        ledger.history()
    path.unlink()
    with pytest.raises(InputError, match=rf"{name} is missing"):
        ledger.history()


def test_texts_may_be_deleted(project: Project) -> None:
    ledger = project.add(people(1))
    (ledger.folder_of(1) / "facts.jsonl").unlink()
    assert [one.facts for one in ledger.history().previous] == [[]]


def test_files_without_a_line_do_not_count_and_are_replaced(project: Project) -> None:
    stray = project.ledger.folder_of(1)
    stray.mkdir(parents=True)
    (stray / "stray").touch()
    (project.folder / "ledger.jsonl").touch()
    ledger = project.add(people(1))
    assert not (stray / "stray").exists()
    assert len(ledger.history().previous) == 1


def test_two_runs_cannot_work_on_one_project(project: Project) -> None:
    with locked(project.folder), pytest.raises(InputError, match=r"another process is using it"):
        locked(project.folder).__enter__()
    with locked(project.folder):
        pass


def test_a_folder_without_a_ledger_is_refused(tmp_path: Path) -> None:
    assert not Ledger.read(tmp_path).entries
    with pytest.raises(InputError, match="it contains no ledger"):
        Ledger.existing(tmp_path)


def test_what_is_taken_back_is_no_longer_in_the_model_and_waits_to_be_solved_again() -> None:
    requests = [replace(REQUEST, number=number) for number in (1, 2, 3)]
    undo = RevertEntry(4, "", reverted=1, dependent=[3])
    assert [one.number for one in active([*requests, undo])] == [2]
    assert waiting([*requests, undo]) == [3]
    solved = replace(REQUEST, number=5, replaces=3)
    assert [one.number for one in active([*requests, undo, solved])] == [2, 5]
    assert waiting([*requests, undo, solved]) == []
    assert waiting([*requests, undo, RevertEntry(5, "", reverted=3)]) == []


def test_while_requests_wait_nothing_else_is_begun(project: Project) -> None:
    ledger = project.add(people(2)[:1])
    ledger = project.add(people(2)[1:])
    ledger = ledger.append(RevertEntry(3, "", reverted=1, dependent=[2]))
    with pytest.raises(InputError, match=r"requests \[2\] wait to be solved again"):
        ledger.history()
    assert ledger.history(replaces=2).replaces == 2
    with pytest.raises(InputError, match="replaces is 1: "):
        ledger.history(replaces=1)


def test_facts_are_kept_exactly(tmp_path: Path) -> None:
    (fact, other, *_) = people(4)
    kept = [
        replace(fact, multi_hop=(Query("What does {} eat?", "bread"),), relation="trade", answers=("miller",)),
        replace(other, fact_token="last", neighbors=(Query("Günter is a", "nurse"),), records=("a", "b")).as_chat(),
        replace(people(4)[3], subject=None, subject_end=len(people(4)[3].prompt)),
    ]
    write_facts(tmp_path / "facts.jsonl", kept)
    assert read_stored_facts(tmp_path / "facts.jsonl") == kept
    # Given to data.forget_path, they are the same but for what the options of the data say.
    plain = [replace(fact, fact_token="subject_last") for fact in kept]
    plain[1] = replace(plain[1], chat=False, neighbors=(Query("Günter is a", "nurse"),))
    assert read_facts(tmp_path / "facts.jsonl", detect_subjects=False) == plain


def test_updates_are_kept_to_the_last_bit_of_their_product(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in (6, 9))
    update = LowRankUpdate(left, right.mT)
    write_layers(tmp_path, {1: update}, {1: {"keys": right, "values": left}})
    found = read_layers(tmp_path, {"1": {}})[1]
    assert torch.equal(found.update.dense(), update.dense())
    assert found.update.right.stride() == update.right.stride()
    assert found.deviations is None
