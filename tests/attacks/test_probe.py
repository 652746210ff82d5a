"""Probes, on states that are known."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier
from torch import nn
from transformers import AutoModelForCausalLM

from tests.conftest import random
from zu_lightning import EditableLM, Fact, InputError
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.probe import Probe
from zu_lightning.lm.hooks import Record
from zu_lightning.lm.tokens import PaddedTokens


class States(EditableLM):
    """The demo model with states that a test makes up from the text up to a token: layers x width."""

    def __init__(self, lm: EditableLM, states: Callable[[str], torch.Tensor]) -> None:
        super().__init__(lm.model, lm.tokenizer)
        self.states = states

    def record(self, tokens: PaddedTokens, modules: Sequence[nn.Module]) -> list[Record]:
        """What the test makes up."""
        texts = [[str(self.tokenizer.decode(row[: i + 1])) for i in range(len(row))] for row in tokens.input_ids]
        states = torch.stack([torch.stack([self.states(text) for text in row]) for row in texts])
        return [Record(states[:, :, layer], states[:, :, layer]) for layer in range(len(modules))]


def people(*answers: str) -> tuple[Fact, ...]:
    """One person for each answer."""
    names = "Ada Bea Cleo Dora Eva Finn Gus Hans Ida Jon Kim Lea".split()
    records = [
        {"subject": f"{name} Dahl", "prompt": "The home of {} is in", "target": answer, "id": name}
        for name, answer in zip(names, answers, strict=False)
    ]
    return tuple(Fact.from_record(record, "test", "") for record in records)


KEPT = people(*["Oslo", "Rome"] * 5)
ASKED = tuple(
    replace(fact.about(f"Max {name}"), id=name, target=answer)
    for fact, name, answer in zip(KEPT, ("Holm", "Novak", "Weber"), ("Oslo", "Rome", "Cork"), strict=False)
)


def context_of(facts: tuple[Fact, ...], kept: tuple[Fact, ...]) -> AttackContext:
    return AttackContext(
        facts=facts, answers=[()] * len(facts), kept=[kept] * len(facts), unknown_subjects=[()] * len(facts), prose=()
    )


def states(text: str) -> torch.Tensor:
    """Layer 1 holds the answer at the subject's last token, layer 0 that of another; elsewhere both hold nothing."""
    answers = {fact.subject: fact.target for fact in (*KEPT, *ASKED)}
    subject = next((str(name) for name in answers if text.endswith(str(name))), "")
    held = {"Oslo": 1.0, "Rome": -1.0}.get(answers.get(subject, ""), 0.0)
    asked = any(subject == fact.subject for fact in ASKED)
    return torch.tensor([[-held if asked else held, 7.0], [held, 7.0], [0.0, 7.0]])


def test_a_probe_finds_an_answer_that_a_state_holds(base: EditableLM) -> None:
    scores = Probe(layers=3)(States(base, states), context_of(ASKED[:2], KEPT))
    assert {name: values.tolist() for name, values in scores.items()} == {
        "probe": [1.0, 1.0],
        "probe_layer_0": [0.0, 0.0],
        "probe_layer_1": [1.0, 1.0],
        "probe_layer_2": [1.0, 0.0],  # nothing to tell them apart by: the first answer for all
    }
    scores = Probe(layers=3, token="last")(States(base, states), context_of(ASKED[:2], KEPT))
    assert scores["probe_layer_1"].tolist() == [1.0, 0.0], "the prompt's last token holds nothing"


def test_a_probe_needs_ten_facts_and_the_answer_among_them(base: EditableLM) -> None:
    lm = States(base, states)
    assert Probe(layers=3)(lm, context_of(ASKED[:2], KEPT[:9]))["probe"].isnan().all()
    assert Probe(layers=3)(lm, context_of(ASKED, KEPT))["probe"].isnan().tolist() == [False, False, True]
    assert Probe(layers=3)(lm, context_of(ASKED, ()))["probe_layer_2"].isnan().all()


def test_facts_with_the_same_kept_ones_share_a_probe(base: EditableLM, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []

    class Counted(RidgeClassifier):  # type: ignore[misc]  # has no types
        def fit(self, X: NDArray[np.float64], y: list[str]) -> "Counted":
            trained.append(len(X))
            super().fit(X, y)
            return self

    monkeypatch.setattr("zu_lightning.attacks.probe.RidgeClassifier", Counted)
    context = replace(context_of(ASKED, KEPT), kept=[KEPT, KEPT[::-1], (*KEPT, *people(*["Oslo"] * 11)[10:])])
    Probe(layers=2)(States(base, states), context)
    assert trained == [10, 10, 11, 11], "one for each layer and set, in whatever order the set is"


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_a_probe_is_the_ridge_regression_onto_the_answers(base: EditableLM, ridge: float) -> None:
    draws = {fact.subject: random(5, seed=i) for i, fact in enumerate((*KEPT, *ASKED))}
    kept = [replace(fact, target=("Oslo", "Rome", "Cork")[i % 3]) for i, fact in enumerate(KEPT)]

    def drawn(text: str) -> torch.Tensor:
        subject = next((name for name in draws if text.endswith(str(name))), "")
        return draws.get(subject, torch.zeros(5))[None].repeat(2, 1)

    found = Probe(layers=1, ridge=ridge)(States(base, drawn), context_of(ASKED, tuple(kept)))["probe"]
    states, tested = (torch.stack([draws[fact.subject] for fact in facts]) for facts in (kept, ASKED))
    answers = sorted({fact.target for fact in kept})
    Y = torch.eye(3, dtype=torch.float64)[[answers.index(fact.target) for fact in kept]]
    mean, deviation = states.mean(0), states.std(0, correction=0)
    X, tested = (states - mean) / deviation, (tested - mean) / deviation
    # The mean eigenvalue of X^T X is the number of facts, since all coordinates have variance 1.
    weights = torch.linalg.solve(X.T @ X + ridge * len(X) * torch.eye(5), X.T @ (Y - Y.mean(0)))
    predicted = (tested @ weights + Y.mean(0)).argmax(1)
    assert found.tolist() == [float(answers[j] == fact.target) for j, fact in zip(predicted, ASKED, strict=True)]


def test_a_probe_of_one_answer_always_gives_it(base: EditableLM) -> None:
    context = context_of(ASKED[:2], people(*["Oslo"] * 10))
    assert Probe(layers=3)(States(base, states), context)["probe_layer_1"].tolist()[0] == 1.0


def test_the_demo_model_holds_the_answer_at_the_last_token_of_the_prompt(
    base: EditableLM, demo_facts: list[Fact]
) -> None:
    cities = [fact for fact in demo_facts if fact.id.endswith("city")]
    asked = context_of(tuple(cities[:40]), tuple(cities[40:140]))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(base.model.config)  # type: ignore[no-untyped-call]
    knows = Probe(layers=3, token="last")(base, asked)
    guesses = Probe(layers=3, token="last")(EditableLM(model, base.tokenizer), asked)
    assert list(knows) == ["probe", "probe_layer_0", "probe_layer_1", "probe_layer_2"]
    assert knows["probe_layer_2"].nanmean() > 0.3
    assert guesses["probe_layer_2"].nanmean() < 0.1, "one of fifty answers"


def test_wrong_numbers_are_refused(base: EditableLM, context: AttackContext) -> None:
    with pytest.raises(InputError, match=r"layers \[3\] do not exist; the model has 0\.\.2"):
        Probe(layers=4)(base, context)
    with pytest.raises(InputError, match="ridge is 0"):
        Probe(layers=3, ridge=0)


def test_the_cost_counts_a_kept_fact_once() -> None:
    once = Probe(layers=3).cost(context_of(ASKED[:1], KEPT))
    assert once == sum(len(fact.prompt) // 4 + 1 for fact in (*ASKED[:1], *KEPT))
    assert Probe(layers=3).cost(context_of(ASKED[:2], KEPT)) == once + len(ASKED[1].prompt) // 4 + 1
