"""From facts to the problem of a layer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TEXTS, in_processes, own_columns, random_lm, update_for
from zu_lightning import (
    AlphaEdit,
    EditableLM,
    Fact,
    InputError,
    LatentOptions,
    LayerProblem,
    Memit,
    Monitor,
    NeutralTargets,
    Preparation,
    Request,
    RetainText,
    ZeroUnlearnGD,
    apply_update,
    layer_problem,
    lookup_keys,
    neutral_targets,
    original_values,
    prepare,
    sample_contexts,
    second_moments,
)
from zu_lightning.editing.keys import layer_outputs
from zu_lightning.editing.latents import Aim
from zu_lightning.editing.method import EditingMethod
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.lm.tokens import Prompt, tokenize
from zu_lightning.runtime import cache

METHOD = ZeroUnlearnGD(latents=LatentOptions(steps=2))
TEXT = RetainText(TEXTS)


def requested(facts: list[Fact], text: RetainText = TEXT) -> Request:
    return Request(facts, text, seed=3)


def prepared(lm: EditableLM, facts: list[Fact], layers: list[int], method: EditingMethod = METHOD) -> Preparation:
    return prepare(lm, requested(facts), layers, method, "mill")


def test_targets_belong_to_the_last_layer_and_moments_to_every_layer(lm: EditableLM, facts: list[Fact]) -> None:
    found = prepared(lm, facts, [0, 1])
    expected = neutral_targets(lm, facts, 1, PromptVariants(sample_contexts(lm, seed=3)), Aim("mill"), METHOD)
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
    again = prepare(lm, requested(facts), [1], METHOD, targets=targets)
    assert again.targets is targets


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_each_layer_takes_its_share_of_what_is_missing(lm: EditableLM, facts: list[Fact], layer: int) -> None:
    layers = [0, 1, 2]
    preparation = prepared(lm, facts, layers)
    problem = layer_problem(lm, requested(facts), layer, preparation)
    contexts = preparation.targets.contexts
    assert problem.layer == layer
    assert torch.equal(problem.keys, lookup_keys(lm, facts, layer, contexts))
    assert torch.equal(problem.values, original_values(lm, facts, layer, contexts, METHOD))
    assert problem.second_moment is preparation.second_moments[layer]
    missing = preparation.targets.optimum - layer_outputs(lm, facts, 2)
    assert missing.abs().max() > 1e-2
    assert torch.allclose(problem.residuals, missing / (3 - layer), atol=1e-12)


def test_keys_of_protected_facts_are_those_of_facts_to_forget(lm: EditableLM, facts: list[Fact]) -> None:
    request = replace(requested(facts[:2]), protect=facts[2:])
    preparation = prepare(lm, request, [1], METHOD)
    found = layer_problem(lm, request, 1, preparation).protected_keys
    assert found is not None
    assert torch.equal(found, lookup_keys(lm, facts[2:], 1, preparation.targets.contexts))
    assert layer_problem(lm, requested(facts[:2]), 1, preparation).protected_keys is None


def test_values_are_observed_if_they_are_not_optimized(any_lm: EditableLM, facts: list[Fact]) -> None:
    method = replace(METHOD, optimize_values=False)
    problem = layer_problem(any_lm, requested(facts), 1, prepared(any_lm, facts, [1], method))
    assert torch.equal(problem.values, any_lm.weight(1).double() @ problem.keys)


def test_a_projections_bias_is_not_among_the_values_that_its_weight_has_to_lose(facts: list[Fact]) -> None:
    lm = random_lm("gpt2")
    bias = lm.bias(1)
    assert bias is not None
    preparation = prepared(lm, facts, [1])
    found = layer_problem(lm, requested(facts), 1, preparation).values
    expected = original_values(lm, facts, 1, preparation.targets.contexts, METHOD)
    assert torch.allclose(found + bias.double()[:, None], expected, atol=1e-12)


def test_phases_are_timed(lm: EditableLM, facts: list[Fact]) -> None:
    monitor = Monitor()
    preparation = prepare(lm, requested(facts), [1], METHOD, monitor=monitor)
    assert monitor.seconds.keys() == {"moments", "targets"}
    layer_problem(lm, requested(facts), 1, preparation, monitor)
    assert monitor.seconds.keys() == {"moments", "targets", "keys_and_values"}
    assert all(seconds > 0 for seconds in monitor.seconds.values())


def problem_of(
    lm: EditableLM, request: Request, method: EditingMethod = METHOD, neutral_target: str = "mill"
) -> LayerProblem:
    """The problem of the second of two layers, after an edit of the first."""
    layers = [0, 1]
    preparation = prepare(lm, request, layers, method, neutral_target)
    layer_problem(lm, request, 0, preparation)
    apply_update(lm, 0, update_for(lm, 0))
    return layer_problem(lm, request, 1, preparation)


def same(problem: LayerProblem, other: LayerProblem) -> bool:
    """Whether two problems agree in every bit."""
    tensors = [vars(each) for each in (problem, other)]
    return all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items() if torch.is_tensor(value))


@pytest.fixture
def short_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One context that a seed decides, without a model that would have to write it."""
    sampled = "zu_lightning.editing.preparation.sample_contexts"
    monkeypatch.setattr(sampled, lambda _, starts, seed: ("", f"The {seed} hills."))


def shared(facts: list[Fact], folder: Path | None, **changes: Any) -> Request:
    return replace(requested(facts[:2]), protect=facts[2:], cache=folder, **changes)


@pytest.mark.usefixtures("short_contexts")
def test_a_second_method_never_runs_the_model(
    facts: list[Fact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = problem_of(random_lm("llama"), shared(facts, None))
    first = problem_of(random_lm("llama"), shared(facts, tmp_path))
    read: list[str] = []

    def noting(load: Callable[..., Any]) -> Callable[..., Any]:
        def noted(file: Path, *of_it: object) -> object:
            read.append(file.name.partition("-")[0])
            return load(file, *of_it)

        return noted

    for load in (cache.read_tensors, cache.read_rows):
        monkeypatch.setattr(cache, load.__name__, noting(load))
    monkeypatch.setattr(EditableLM, "_forward", lambda *_, **__: pytest.fail("the model was run"))
    second = problem_of(random_lm("llama"), shared(facts, tmp_path))
    assert same(first, second)
    assert same(first, alone)
    assert {"moments", "targets", "keys", "values", "outputs"} == set(read)


@pytest.mark.usefixtures("short_contexts")
@pytest.mark.parametrize(
    ("changed", "files"),
    [
        ("seed", {"targets", "keys", "values"}),
        ("facts", {"targets", "keys", "values", "outputs"}),
        ("order", {"targets", "keys", "values", "outputs"}),
        ("text", {"moments"}),
        ("neutral_target", {"targets"}),
        ("latents", {"targets", "values"}),
        ("optimize_values", set()),
        ("model", {"moments", "targets", "keys", "values", "outputs"}),
    ],
)
def test_a_file_is_for_what_depends_on_nothing_else(
    facts: list[Fact], tmp_path: Path, changed: str, files: set[str]
) -> None:
    problem_of(random_lm("llama"), shared(facts, tmp_path))
    before, lm, method = set(tmp_path.iterdir()), random_lm("llama"), METHOD
    neutral_target, request = "mill", shared(facts, tmp_path)
    if changed == "seed":
        request = replace(request, seed=4)
    elif changed in ("facts", "order"):
        request = replace(request, forget=facts[:1] if changed == "facts" else facts[1::-1])
    elif changed == "text":
        request = replace(request, text=RetainText(TEXTS[1:]))
    elif changed == "neutral_target":
        neutral_target = "baker"
    elif changed == "latents":
        method = replace(METHOD, latents=LatentOptions(steps=3))
    elif changed == "optimize_values":
        method = replace(METHOD, optimize_values=False)
    else:
        apply_update(lm, 2, update_for(lm, 2))
    found = problem_of(lm, request, method, neutral_target)
    assert {file.name.partition("-")[0] for file in set(tmp_path.iterdir()) - before} == files
    other = random_lm("llama")
    if changed == "model":
        apply_update(other, 2, update_for(other, 2))
    assert same(found, problem_of(other, replace(request, cache=None), method, neutral_target))


@pytest.mark.usefixtures("short_contexts")
def test_two_methods_share_a_layers_eigenvectors(
    facts: list[Fact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = random_lm("llama")
    problem = problem_of(lm, shared(facts, tmp_path))
    alone = AlphaEdit()(lm.weight(1), problem_of(random_lm("llama"), shared(facts, None)))
    ZeroUnlearnGD()(lm.weight(1), problem)
    monkeypatch.setattr(torch.linalg, "eigh", lambda _: pytest.fail("eigenvectors are known"))
    update = AlphaEdit()(lm.weight(1), problem)
    assert torch.equal(update.left, alone.left)
    assert torch.equal(update.right, alone.right)


@pytest.mark.usefixtures("short_contexts")
def test_another_edit_below_is_not_confused_with_this_one(facts: list[Fact], tmp_path: Path) -> None:
    request, found = shared(facts, tmp_path), []
    for rank in (1, 2):
        lm = random_lm("llama")
        preparation = prepare(lm, request, [0, 1], METHOD)
        apply_update(lm, 0, update_for(lm, 0, rank))
        found.append(layer_problem(lm, request, 1, preparation))
        uncached = layer_problem(lm, replace(request, cache=None), 1, preparation)
        assert same(found[-1], uncached)
    assert not torch.allclose(found[0].keys, found[1].keys)


COLUMNS = ("keys", "residuals", "values", "protected_keys", "deviations")


@pytest.mark.usefixtures("short_contexts")
@pytest.mark.parametrize(("processes", "average_over_prompts"), [(2, False), (3, True)])
def test_the_columns_of_a_process_are_its_share_of_the_facts(
    facts: list[Fact], tmp_path: Path, processes: int, average_over_prompts: bool
) -> None:
    # One fact a batch: work is shared in other ways than facts are.
    latents = LatentOptions(steps=2, facts_per_batch=1, average_over_prompts=average_over_prompts)
    method = ZeroUnlearnGD(latents=latents)
    request = replace(requested(facts[:3]), protect=facts[3:])
    whole = problem_of(random_lm("llama"), request, method)

    def held() -> tuple[int, list[str]]:
        own, expected = problem_of(random_lm("llama"), request, method), own_columns(whole)
        together = own.gathered()
        assert all(torch.equal(getattr(together, name), getattr(whole, name)) for name in COLUMNS[:3])
        assert torch.allclose(own.second_moment, whole.second_moment)
        pairs = {name: (getattr(own, name), getattr(expected, name)) for name in COLUMNS}
        return own.keys.shape[1], [name for name, pair in pairs.items() if pair[0] is not None and torch.equal(*pair)]

    found = in_processes(processes, held, tmp_path)
    assert [count for count, _ in found] == {2: [1, 2], 3: [1, 1, 1]}[processes]
    assert all(same == list(COLUMNS if average_over_prompts else COLUMNS[:4]) for _, same in found)


@pytest.mark.usefixtures("short_contexts")
def test_any_number_of_processes_reads_what_another_number_has_kept(facts: list[Fact], tmp_path: Path) -> None:
    request = requested(facts[:3])
    targets = prepare(random_lm("llama"), request, [1], METHOD).targets

    def kept(cache: Path) -> object:
        lm, shared = random_lm("llama"), replace(request, cache=cache)
        preparation = prepare(lm, shared, [1], METHOD)
        layer_problem(lm, shared, 1, preparation)
        return preparation.targets.state_dict()

    for first, then in ((3, 1), (1, 2)):
        cache = tmp_path / f"cache of {first}"
        (saved, *_) = in_processes(first, lambda cache=cache: kept(cache), tmp_path / f"first {first}")  # type: ignore[misc]
        assert torch.equal(saved["rows"], targets.rows())
        written = {file.name: file.stat().st_mtime_ns for file in cache.iterdir()}
        again = in_processes(then, lambda cache=cache: kept(cache), tmp_path / f"then {first}")  # type: ignore[misc]
        assert {file.name: file.stat().st_mtime_ns for file in cache.iterdir()} == written
        assert torch.equal(again[0]["rows"], saved["rows"])

    def continued() -> torch.Tensor:
        return NeutralTargets.from_state_dict(saved, torch.device("cpu")).optimum

    optima = in_processes(2, continued, tmp_path / "continued")
    assert [optimum.shape[1] for optimum in optima] == [1, 2]
    assert torch.equal(torch.cat(optima, 1), targets.optimum)


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
        answers = (fact.target, "mill")
        return fact, max(len(tokenize(lm.tokenizer, Prompt.about(fact, answer=answer)).ids) for answer in answers)

    longest = max(count for count in range(128) if lengthened(count)[1] <= lm.context_length)
    with pytest.raises(InputError, match="number of tokens of fact '0' with an answer after a context"):
        prepared(lm, [lengthened(longest)[0]], [1])


def test_a_neutral_target_that_the_model_cannot_read_is_refused(lm: EditableLM, facts: list[Fact]) -> None:
    with pytest.raises(InputError, match=r"number of tokens of fact '0' with an answer after a context is \d+"):
        prepare(lm, requested(facts), [1], METHOD, "very " * 200)


@pytest.mark.parametrize(
    ("text", "layers", "parameter"), [(TEXT, [0, 9], "layers"), (TEXT, [], "layers"), (RetainText([]), [1], "corpus")]
)
def test_what_is_missing_is_refused_by_name(
    lm: EditableLM, facts: list[Fact], text: RetainText, layers: list[int], parameter: str
) -> None:
    with pytest.raises(InputError) as refused:
        prepare(lm, requested(facts, text), layers, METHOD)
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


def test_as_many_contexts_are_averaged_over_as_asked_for(lm: EditableLM, facts: list[Fact]) -> None:
    all_of_them = prepared(lm, facts, [1]).targets.contexts
    assert len(all_of_them) == 6
    for count in (1, 3):
        method = replace(METHOD, latents=replace(METHOD.latents, contexts=count))
        assert prepared(lm, facts, [1], method).targets.contexts == all_of_them[:count]


@pytest.mark.parametrize("count", [0, 7])
def test_a_number_of_contexts_that_there_are_not_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=rf"latents\.contexts is {count}: give a number from 1 to 6"):
        LatentOptions(contexts=count)


@pytest.mark.parametrize(("method", "is_warned"), [(AlphaEdit, True), (Memit, False)])
def test_averaging_over_prompts_needs_a_retain_term(
    method: type[EditingMethod], is_warned: bool, lm: EditableLM, facts: list[Fact], caplog: pytest.LogCaptureFixture
) -> None:
    chosen = method(latents=LatentOptions(contexts=1, steps=1, average_over_prompts=True))
    prepared(lm, facts[:1], [0, 1], chosen)
    assert caplog.text.count("has no retain term: latents.average_over_prompts has no effect") == is_warned
