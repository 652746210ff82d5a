"""A request is subtracted exactly; what depends on it is subtracted with it, and solved again."""

import pytest
import torch

from tests.ledger.conftest import LAYERS, Project, make_dependent, people
from zu_lightning import InputError
from zu_lightning.ledger.files import CONFIGURATION
from zu_lightning.ledger.identification import identify
from zu_lightning.ledger.reverting import plan_revert, revert
from zu_lightning.lm.updates import apply_updates


def test_a_request_on_which_nothing_depends_is_subtracted_exactly(project: Project) -> None:
    for fact in people(3):
        project.add([fact])
    todo = plan_revert(project.ledger, 2)
    assert todo.dependence == {3: 0.0}
    assert todo.dependent == []
    base = project.load_base()
    ledger = revert(project.ledger, todo, base)
    assert [entry.number for entry in ledger.active] == [1, 3]
    expected = project.load_base()
    apply_updates(expected, [ledger.previous(ledger.request(number)).updates for number in (1, 3)])
    for layer in LAYERS:
        assert torch.equal(base.weight(layer), expected.weight(layer))
        assert not torch.equal(base.weight(layer), project.lm.weight(layer))
    assert identify(project.ledger, base, project.load_base()).line == 4


def test_how_much_a_request_depends_on_an_earlier_one_is_measured_at_its_keys(project: Project) -> None:
    make_dependent(project, 0.5)
    ledger = project.ledger
    first, second = (ledger.previous(ledger.request(number)).layers for number in (1, 2))
    lost = [
        (first[i].update.dense() @ second[i].keys).norm() / (second[i].update.dense() @ second[i].keys).norm()
        for i in LAYERS
    ]
    todo = plan_revert(ledger, 1)
    assert todo.dependence == {2: pytest.approx(max(lost).item())}
    assert todo.dependent == [2]
    ledger = revert(ledger, todo, project.load_base())
    assert ledger.active == []
    assert ledger.waiting == [2]


def test_a_request_that_hardly_depends_stays(project: Project) -> None:
    make_dependent(project, 0.001)
    assert 0 < plan_revert(project.ledger, 1).dependence[2] < 0.05
    assert plan_revert(project.ledger, 1).dependent == []


def test_later_requests_are_no_reason_to_solve_earlier_ones_again(project: Project) -> None:
    make_dependent(project, 0.5)
    assert plan_revert(project.ledger, 2).dependence == {}


def test_what_depends_on_what_is_solved_again_is_solved_again_too(project: Project) -> None:
    make_dependent(project, 0.5)
    before = project.keys
    project.keys = lambda number, count: before(3, count) + 0.5 * before(2, count)  # type: ignore[method-assign]
    project.add(people(3)[2:])
    (project.ledger.folder_of(3) / CONFIGURATION).touch()
    assert plan_revert(project.ledger, 1).dependent == [2, 3]


def test_a_request_at_other_layers_may_depend_on_it(project: Project) -> None:
    project.add(people(1), layers=[0])
    project.add(people(2)[1:], layers=[2])
    (project.ledger.folder_of(2) / CONFIGURATION).touch()
    assert plan_revert(project.ledger, 1).dependent == [2]


def test_what_cannot_be_solved_again_is_not_taken_back(project: Project) -> None:
    make_dependent(project, 0.5)
    (project.ledger.folder_of(2) / "facts.jsonl").unlink()
    with pytest.raises(InputError, match="request 2 depends on it and cannot be solved again: its texts were deleted"):
        plan_revert(project.ledger, 1)


def test_a_request_is_taken_back_once(project: Project) -> None:
    project.add(people(1))
    with pytest.raises(InputError, match=r"number is 7: requests \[1\] are in the model"):
        plan_revert(project.ledger, 7)
    revert(project.ledger, plan_revert(project.ledger, 1), project.load_base())
    with pytest.raises(InputError, match="reverted already"):
        plan_revert(project.ledger, 1)


def test_a_request_that_waits_to_be_solved_again_can_be_taken_back_instead(project: Project) -> None:
    make_dependent(project, 0.5)
    ledger = revert(project.ledger, plan_revert(project.ledger, 1), project.load_base())
    (ledger.folder_of(2) / "facts.jsonl").unlink()
    with pytest.raises(InputError, match="wait to be solved again"):
        ledger.history()
    todo = plan_revert(ledger, 2)
    assert todo.dependence == {}
    ledger = revert(ledger, todo, project.load_base())
    assert ledger.waiting == []
    assert ledger.history().previous == []
    assert identify(ledger, project.load_base(), project.load_base()).line == 4
    with pytest.raises(InputError, match="reverted already"):
        plan_revert(ledger, 2)
