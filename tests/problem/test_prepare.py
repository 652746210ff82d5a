"""The road from facts to the problem of a layer."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.conftest import TEXTS, random_lm
from zu_lightning import (
    EditableLM,
    Fact,
    InputError,
    LatentOptions,
    Monitor,
    Preparation,
    Request,
    RetainText,
    TargetOptions,
    layer_problem,
    lookup_keys,
    neutral_targets,
    original_values,
    prepare,
    sample_contexts,
    second_moments,
)
from zu_lightning.lm.tokens import tokenize_fact
from zu_lightning.problem.keys import layer_outputs

OPTIONS = TargetOptions(neutral_target="mill", latents=LatentOptions(steps=2))
TEXT = RetainText(TEXTS)


def requested(facts: list[Fact], text: RetainText = TEXT) -> Request:
    return Request(facts, text, seed=3)


def prepared(lm: EditableLM, facts: list[Fact], layers: list[int], options: TargetOptions = OPTIONS) -> Preparation:
    return prepare(lm, requested(facts), layers, options)


def test_targets_belong_to_the_last_layer_and_moments_to_every_layer(lm: EditableLM, facts: list[Fact]) -> None:
    found = prepared(lm, facts, [0, 1])
    expected = neutral_targets(lm, facts, 1, sample_contexts(lm, seed=3), OPTIONS)
    assert found.targets.contexts == expected.contexts
    assert torch.equal(found.targets.optimum, expected.optimum)
    moments = second_moments(lm, TEXT, [0, 1])
    assert list(found.second_moments) == [0, 1]
    assert all(torch.equal(found.second_moments[layer], moments[layer]) for layer in (0, 1))


def test_targets_of_an_earlier_run_are_taken_as_they_are(
    lm: EditableLM, facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = prepared(lm, facts, [1]).targets
    monkeypatch.setattr(EditableLM, "generate", lambda *_, **__: pytest.fail("contexts are known"))
    again = prepare(lm, requested(facts), [1], OPTIONS, targets)
    assert again.targets is targets


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_layer_takes_its_share_of_what_is_missing(lm: EditableLM, facts: list[Fact], layer: int) -> None:
    layers = [0, 1, 2]
    preparation = prepared(lm, facts, layers)
    problem = layer_problem(lm, requested(facts), layer, layers, preparation, OPTIONS)
    contexts = preparation.targets.contexts
    assert problem.layer == layer
    assert torch.equal(problem.keys, lookup_keys(lm, facts, layer, contexts))
    assert torch.equal(problem.values, original_values(lm, facts, layer, contexts, OPTIONS.latents))
    assert problem.second_moment is preparation.second_moments[layer]
    missing = preparation.targets.optimum - layer_outputs(lm, facts, 2)
    assert missing.abs().max() > 1e-2
    assert torch.allclose(problem.residuals, missing / (3 - layer), atol=1e-12)


def test_keys_of_protected_facts_are_those_of_facts_to_forget(lm: EditableLM, facts: list[Fact]) -> None:
    request = replace(requested(facts[:2]), protect=facts[2:])
    preparation = prepare(lm, request, [1], OPTIONS)
    found = layer_problem(lm, request, 1, [1], preparation, OPTIONS).protected_keys
    assert found is not None
    assert torch.equal(found, lookup_keys(lm, facts[2:], 1, preparation.targets.contexts))
    assert layer_problem(lm, requested(facts[:2]), 1, [1], preparation, OPTIONS).protected_keys is None


def test_values_are_observed_if_they_are_not_optimized(any_lm: EditableLM, facts: list[Fact]) -> None:
    options = replace(OPTIONS, optimize_values=False)
    problem = layer_problem(any_lm, requested(facts), 1, [1], prepared(any_lm, facts, [1], options), options)
    assert torch.equal(problem.values, any_lm.weight(1).double() @ problem.keys)


def test_a_projections_bias_is_not_among_the_values_that_its_weight_has_to_lose(facts: list[Fact]) -> None:
    lm = random_lm("gpt2")
    bias = lm.bias(1)
    assert bias is not None
    preparation = prepared(lm, facts, [1])
    found = layer_problem(lm, requested(facts), 1, [1], preparation, OPTIONS).values
    expected = original_values(lm, facts, 1, preparation.targets.contexts, OPTIONS.latents)
    assert torch.allclose(found + bias.double()[:, None], expected, atol=1e-12)


def test_phases_are_timed(lm: EditableLM, facts: list[Fact]) -> None:
    monitor = Monitor()
    preparation = prepare(lm, requested(facts), [1], OPTIONS, monitor=monitor)
    assert monitor.seconds.keys() == {"moments", "targets"}
    layer_problem(lm, requested(facts), 1, [1], preparation, OPTIONS, monitor)
    assert monitor.seconds.keys() == {"moments", "targets", "keys_and_values"}
    assert all(seconds > 0 for seconds in monitor.seconds.values())


def long_prompt(fact: Fact) -> Fact:
    prompt = "very " * 200 + fact.prompt
    return replace(fact, prompt=prompt, subject_end=len(prompt))


def long_answer(fact: Fact) -> Fact:
    return replace(fact, target="very " * 200 + fact.target)


@pytest.mark.parametrize("lengthened", [long_prompt, long_answer])
def test_a_fact_that_the_model_cannot_read_is_refused_before_any_work(
    lm: EditableLM, facts: list[Fact], lengthened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EditableLM, "record", lambda *_: pytest.fail("expensive work was begun"))
    monkeypatch.setattr(EditableLM, "logits", lambda *_: pytest.fail("expensive work was begun"))
    facts[2] = lengthened(facts[2])
    with pytest.raises(
        InputError, match=r"number of tokens of fact '2' with an answer after a context is .* holds 128"
    ):
        prepared(lm, facts, [1])


def test_a_fact_that_the_model_can_read_alone_only_is_refused(lm: EditableLM, facts: list[Fact]) -> None:
    def lengthened(count: int) -> tuple[Fact, int]:
        prompt = "very " * count + facts[0].prompt
        fact = replace(facts[0], prompt=prompt, subject_end=len(prompt))
        answers = (fact.target, OPTIONS.neutral_target)
        return fact, max(len(tokenize_fact(lm.tokenizer, fact, answer=answer).ids) for answer in answers)

    longest = max(count for count in range(128) if lengthened(count)[1] <= lm.context_length)
    with pytest.raises(InputError, match="number of tokens of fact '0' with an answer after a context"):
        prepared(lm, [lengthened(longest)[0]], [1])


def test_a_neutral_target_that_the_model_cannot_read_is_refused(lm: EditableLM, facts: list[Fact]) -> None:
    with pytest.raises(InputError, match=r"number of tokens of fact '0' with an answer after a context is \d+"):
        prepared(lm, facts, [1], TargetOptions(neutral_target="very " * 200))


@pytest.mark.parametrize(
    ("text", "layers", "parameter"), [(TEXT, [0, 9], "layers"), (TEXT, [], "layers"), (RetainText([]), [1], "corpus")]
)
def test_what_is_missing_is_refused_by_name(
    lm: EditableLM, facts: list[Fact], text: RetainText, layers: list[int], parameter: str
) -> None:
    with pytest.raises(InputError) as refused:
        prepare(lm, requested(facts, text), layers, OPTIONS)
    assert refused.value.parameter == parameter


def test_too_many_facts_for_the_models_width_are_warned_of(
    lm: EditableLM, facts: list[Fact], caplog: pytest.LogCaptureFixture
) -> None:
    prepared(lm, facts, [1])
    assert "4 facts are 25% of the model's width 16" in caplog.text


@pytest.mark.parametrize(("architecture", "normalizes"), [("llama", False), ("gemma2", True)])
def test_a_normalized_mlp_output_is_warned_of(
    architecture: str, normalizes: bool, facts: list[Fact], caplog: pytest.LogCaptureFixture
) -> None:
    prepared(random_lm(architecture), facts[:1], [1])
    assert ("normalizes the MLP's output" in caplog.text) == normalizes
