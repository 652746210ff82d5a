"""The state of a run survives being saved, and is not taken up by a run that would end elsewhere."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import random
from zu_lightning import (
    EditKey,
    InputError,
    LayerEdit,
    LayerScores,
    LowRankUpdate,
    NeutralTargets,
    RunState,
)
from zu_lightning.modules.state import as_text, check_settings

CPU = torch.device("cpu")


def edit(seed: int, rank: int = 2) -> LayerEdit:
    size = float(seed)
    scores = LayerScores(size, size / 2, size / 3, size / 4, relative_norm=size / 5, rank=rank, stored_error=0.5)
    return LayerEdit(LowRankUpdate(random(4, rank, seed=seed), random(rank, 6, seed=seed + 100)), scores)


@pytest.fixture
def state() -> RunState:
    lost = torch.tensor([True, False, True])
    return RunState(
        targets=NeutralTargets(
            ("", "It was late."), random(4, 3, seed=4), random(4, 3, seed=5), random(3, seed=6), lost
        ),
        edits={EditKey(0, 3): edit(1), EditKey(0, 7): edit(2), EditKey(1, 3): edit(3, rank=1)},
        before={"efficacy": 100.0},
        after={"efficacy": 10.0},
        measured={
            "completions": {"before": ["a baker"], "after": ["unknown"]},
            "representations": {"before": {3: random(5, 4, seed=7)}},
        },
        queries={"before": {"retain": random(4, 3, seed=8)}, "after": {"retain": random(4, 3, seed=9)}},
        started="2026-01-02T03:04:05+00:00",
        identity={"draw": "0"},
        seconds={"load": 1.5},
    )


def assert_same(state: RunState, other: RunState) -> None:
    """Equal to the last bit, tensors included."""
    for name, value in vars(state).items():
        if name not in ("targets", "edits", "measured", "queries"):
            assert getattr(other, name) == value, name
    assert other.queries.keys() == state.queries.keys()
    for when, found in state.queries.items():
        assert other.queries[when].keys() == found.keys()
        assert all(torch.equal(other.queries[when][name], sums) for name, sums in found.items())
    assert repr(other.measured) == repr(state.measured)
    assert list(other.edits) == list(state.edits)
    for key, expected in state.edits.items():
        assert isinstance(key, EditKey)
        assert other.edits[key].scores == expected.scores
        assert torch.equal(other.edits[key].update.left, expected.update.left)
        assert torch.equal(other.edits[key].update.right, expected.update.right)
    assert (state.targets is None) == (other.targets is None)
    if state.targets is not None:
        for name, value in vars(state.targets).items():
            found = getattr(other.targets, name)
            assert torch.equal(found, value) if isinstance(value, Tensor) else found == value, name


def saved_and_loaded(state: RunState, folder: Path) -> RunState:
    """Through a file that may hold tensors and plain containers only, and so cannot run code."""
    torch.save(state.state_dict(), folder / "state.pt")
    return RunState.from_state_dict(torch.load(folder / "state.pt", weights_only=True), CPU)


def test_a_state_survives_its_file(state: RunState, tmp_path: Path) -> None:
    assert_same(state, saved_and_loaded(state, tmp_path))


def test_the_state_of_a_run_that_has_just_begun_survives_its_file(tmp_path: Path) -> None:
    assert_same(RunState(), saved_and_loaded(RunState(), tmp_path))


def test_layers_are_left_until_their_own_request_has_edited_them(state: RunState) -> None:
    layers = [3, 5, 7]
    assert state.layers_left(0, layers) == [5]
    assert state.layers_left(1, layers) == [5, 7]
    assert state.layers_left(2, layers) == layers


def test_updates_of_one_layer_add_up_over_requests(state: RunState) -> None:
    updates = state.updates()
    assert list(updates) == [3, 7]
    first, second = (state.edits[EditKey(request, 3)].update for request in (0, 1))
    assert torch.allclose(updates[3].dense(), first.dense() + second.dense())
    assert updates[3].rank == first.rank + second.rank
    assert torch.equal(updates[7].dense(), state.edits[EditKey(0, 7)].update.dense())


def test_nothing_was_edited_at_first() -> None:
    assert RunState().updates() == {}
    assert RunState().layers_left(0, [1, 2]) == [1, 2]


SETTINGS = {"model.layers": [0, 1], "method.ridge": 0.1, "data.path": "facts.jsonl"}


def test_a_run_with_the_same_settings_takes_up_a_checkpoint() -> None:
    saved = as_text(SETTINGS | {"model.dtype": "auto"})
    check_settings(saved, as_text(SETTINGS), "last.ckpt")
    with pytest.raises(InputError, match=r"another model\.dtype"):
        check_settings(saved, as_text(SETTINGS | {"model.dtype": "bfloat16"}), "last.ckpt")


@pytest.mark.parametrize(
    ("name", "value"),
    [("model.layers", [0]), ("method.ridge", 0.2), ("data.path", "others.jsonl")],
)
def test_another_setting_is_refused_by_the_name_of_its_option(name: str, value: object) -> None:
    with pytest.raises(InputError) as refused:
        check_settings(as_text(SETTINGS), as_text(SETTINGS | {name: value}), "last.ckpt")
    assert refused.value.parameter == "ckpt_path"
    assert f"written by a run with another {name} ({SETTINGS[name]!r}) than this one ({value!r})" in str(refused.value)


def test_a_setting_that_the_checkpoint_does_not_know_is_refused() -> None:
    with pytest.raises(InputError, match=r"another model\.new \(None\)"):
        check_settings(as_text(SETTINGS), as_text(SETTINGS | {"model.new": 1}), "last.ckpt")
