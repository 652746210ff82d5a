"""Which facts a model answers, against generation, one fact at a time."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tests.conftest import in_processes
from zu_lightning import EditableLM, Fact, InputError, Request, known_facts
from zu_lightning.evaluation.known import Certainty, answered_facts, measure_known
from zu_lightning.lm.tokens import tokenize


def with_wrong_ones(facts: list[Fact]) -> list[Fact]:
    """Some facts, and each of them with the answer of the next one."""
    wrong = [replace(one, id=f"{one.id} wrong", target=two.target) for one, two in pairwise(facts)]
    return [*facts, *wrong]


def test_known_are_the_facts_that_generation_answers(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    facts = with_wrong_ones(demo_facts[:12])
    found = measure_known(demo_lm, facts, batch_tokens=60)
    for fact in facts:
        answers = demo_lm.generate(fact.prompt, 12).startswith(f" {fact.target}")
        assert (found[fact.id].margin > 0) == answers
        text = tokenize(demo_lm.tokenizer, fact.query)
        log_p = demo_lm.model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
        places = torch.arange(text.answer - 1, len(text.ids) - 1)
        total = log_p[places, text.ids[text.answer :]].sum()
        assert found[fact.id].probability == pytest.approx(total.exp().item(), rel=1e-4)
    assert known_facts(demo_lm, facts, batch_tokens=60) == facts[:12]
    least = sorted(found[fact.id].probability for fact in facts[:12])[5]
    assert len(known_facts(demo_lm, facts, at_least=least, batch_tokens=60)) == 7


def test_processes_find_the_same(lm: EditableLM, facts: list[Fact], tmp_path: Path) -> None:
    one, two = (in_processes(n, lambda: measure_known(lm, facts, batch_tokens=30), tmp_path / f"{n}") for n in (1, 2))
    assert two == one * 2


def test_what_was_measured_is_read_again(
    lm: EditableLM, facts: list[Fact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = measure_known(lm, facts, cache=tmp_path)
    monkeypatch.setattr(EditableLM, "logits", lambda *_: pytest.fail("the model was asked again"))
    # The same questions, whatever the facts are called.
    again = measure_known(lm, [replace(fact, id=f"again {fact.id}") for fact in [*facts, *facts]], cache=tmp_path)
    assert again == {f"again {name}": one for name, one in found.items()}
    with pytest.raises(pytest.fail.Exception, match="asked again"):
        measure_known(lm, facts[1:], cache=tmp_path)


def test_the_log_says_how_many_of_each_relation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    facts = [
        Fact(f"{relation}-{i}", f"{relation} {i} is", "x", str(i), len(relation) + 2, relation=relation or None)
        for relation in ("", *map(chr, range(97, 110)))
        for i in range(3)
    ]
    sure, unsure = Certainty(0.5, 1.0), Certainty(0.5, -1.0)
    known = {"-0": sure, "-1": sure, "c-0": sure, "c-1": Certainty(0.1, 1.0)}
    answered = answered_facts(facts, {fact.id: known.get(fact.id, unsure) for fact in facts}, 0.2)
    assert [fact.id for fact in answered] == ["-0", "-1", "c-0"]
    assert caplog.messages == [
        "the model answers 3 of 42 facts (with at least probability 0.2): "
        '" {} is" 2 of 3, c 1 of 3, and 12 more relations'
    ]


def test_a_prompt_that_is_too_long_and_a_number_that_is_no_probability_are_refused(
    lm: EditableLM, facts: list[Fact]
) -> None:
    with pytest.raises(InputError, match="the model's context holds 128: shorten"):
        measure_known(lm, [*facts, replace(facts[0], prompt="very " * 200)])
    with pytest.raises(InputError, match=r"at_least is 1\.5: it is a probability"):
        known_facts(lm, facts, at_least=1.5)


def test_a_request_draws_them_and_knows_the_others(demo_facts: list[Fact]) -> None:
    answered = demo_facts[::3]
    request = Request.draw(demo_facts, [], forget=20, retain=30, protect_same_subject=True, answered=answered)
    drawn = [*request.forget, *request.retain, *request.protect]
    assert len(request.protect) > 0
    assert {fact.id for fact in drawn} <= {fact.id for fact in answered}
    assert request.all_facts == demo_facts
