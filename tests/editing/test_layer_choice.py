"""Layers that are chosen by trial edits."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import DEMO
from zu_lightning import EditableLM, Fact, InputError, LatentOptions, Memit, ReadingOptions, Request, read_texts
from zu_lightning.editing import layer_choice
from zu_lightning.editing.layer_choice import LayerChoice, Trial, candidates, choose_layers

METHOD = Memit(latents=LatentOptions(steps=8, contexts=1))


@pytest.mark.parametrize("depth", [1, 2, 3, 12, 30, 126])
def test_candidates_are_few_different_ranges_of_layers_that_exist(depth: int) -> None:
    tried = candidates(depth)
    assert 0 < len(tried) == len(set(tried)) <= 10
    for layers in tried:
        assert layers == tuple(range(layers[0], layers[-1] + 1))
        assert layers[-1] < depth


def test_the_best_trial_has_forgotten_and_keeps_most() -> None:
    weak, strong, costly = Trial((0,), 0.4, 0.99, 1.0), Trial((1,), 0.05, 0.9, 1.0), Trial((2,), 0.0, 0.8, 1.0)
    choice = LayerChoice((weak, strong, costly))
    assert choice.best == strong
    (chosen,) = (line.split() for line in choice.table.splitlines() if "chosen" in line)
    assert chosen == ["1", "5.0", "90.0", "x", "1.000", "<-", "chosen"]
    assert LayerChoice((weak, Trial((1,), 0.6, 1.0, 1.0))).best == weak


@pytest.fixture
def request_of_three(demo_facts: list[Fact], monkeypatch: pytest.MonkeyPatch) -> Request:
    for name, number in {"FACTS": 3, "OTHERS": 20, "ASKED": 60}.items():
        monkeypatch.setattr(layer_choice, name, number)
    corpus = read_texts(str(DEMO / "corpus.txt"), 200)
    return Request.draw(demo_facts, corpus, method=METHOD, forget=3, retain=3, reading=ReadingOptions())


def test_the_demo_is_edited_in_its_first_layer_and_trials_leave_no_trace(
    request_of_three: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = EditableLM.from_pretrained(DEMO / "model")
    weights = [lm.weight(layer).clone() for layer in range(3)]
    request = replace(request_of_three, cache=tmp_path)
    choice = choose_layers(lm, request, METHOD)
    assert choice.best.layers[0] == 0
    assert choice.best.kept > 0.9
    assert max(trial.left for trial in choice.trials if 0 not in trial.layers) > 0.5
    assert all(torch.equal(lm.weight(layer), weights[layer]) for layer in range(3))
    monkeypatch.setattr(layer_choice, "LayerEditor", None)  # a second run finds all trials in the cache
    assert choose_layers(lm, request, METHOD) == choice


def test_a_method_without_a_solution_is_no_choice(request_of_three: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsolvable(*_: object) -> bool:
        raise InputError("ZeroUnlearnGD.threshold", 0.1, "the null space is empty")

    lm = EditableLM.from_pretrained(DEMO / "model")
    monkeypatch.setattr("zu_lightning.editing.editor.LayerEditor.solve", unsolvable)
    choice = choose_layers(lm, request_of_three, METHOD)
    assert {(trial.left, trial.kept) for trial in choice.trials} == {(1.0, 0.0)}


def test_too_few_other_facts_are_refused(demo_facts: list[Fact]) -> None:
    lm = EditableLM.from_pretrained(DEMO / "model")
    request = Request.draw(demo_facts[:30], ["Some text."], method=METHOD, forget=5, retain=20)
    with pytest.raises(InputError, match=r"layers is 'auto': of \d facts .* the model answers \d, too few"):
        choose_layers(lm, request, METHOD)
