"""Latent optimization: batched facts against one fact at a time, transcribed from the published procedure."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import random_lm
from zu_lightning import (
    EditableLM,
    Fact,
    InputError,
    LatentOptions,
    NeutralTargets,
    ReleaseProtocol,
    ZeroUnlearnGD,
    neutral_targets,
    original_values,
)
from zu_lightning.editing import latent_rows
from zu_lightning.editing.latent_problem import LatentObjective, LatentProblem
from zu_lightning.editing.latent_rows import Kept, Rows
from zu_lightning.editing.latents import Aim
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.lm.tokens import Prompt, collate, tokenize

CONTEXTS = ("", "It was late.", "In the morning, a quiet river stood.")
OPTIONS = LatentOptions(steps=6)
DEFAULT = ReleaseProtocol()

FREE = LatentOptions(weight_decay=0.0, kl_weight=0.0)
"""A random model's states are small, and the decay, which is relative to them, would hold every vector in place."""


def targets_for(
    lm: EditableLM,
    facts: list[Fact],
    layer: int,
    contexts: tuple[str, ...],
    options: LatentOptions,
    aim: Aim | str = "mill",
    release: ReleaseProtocol = DEFAULT,
    rephrased: Mapping[str, Sequence[Fact]] | None = None,
) -> NeutralTargets:
    method = ZeroUnlearnGD(latents=options, release=release)
    aim = Aim(aim) if isinstance(aim, str) else aim
    return neutral_targets(lm, facts, layer, PromptVariants(contexts, rephrased or {}), aim, method)


def values_for(lm: EditableLM, facts: list[Fact], options: LatentOptions) -> Tensor:
    return original_values(lm, facts, 1, CONTEXTS, ZeroUnlearnGD(latents=options))


def one_at_a_time(
    lm: EditableLM,
    fact: Fact,
    answer: str,
    site: nn.Module,
    options: LatentOptions,
    unknown_subjects: Sequence[str] = (),
    same_subject_fact: Fact | None = None,
    rephrased: Sequence[Fact] = (),
    release: ReleaseProtocol = DEFAULT,
) -> tuple[Tensor, Tensor]:
    """The published procedure for one fact with one vector, full forward passes and no batching: start and optimum.

    With unknown subjects the loss is that of references, in place of the answer's.
    """
    put = [(context, fact) for context in CONTEXTS] + [("", other) for other in rephrased]
    prompts = [tokenize(lm.tokenizer, Prompt.about(other, context=context, answer=answer)) for context, other in put]
    essence = tokenize(lm.tokenizer, Prompt(f"{fact.subject} is a", lookup_end=len(fact.subject or "")))
    (record,) = lm.record(collate([prompts[0]], lm.tokenizer), [site])
    start = record.output[0, prompts[0].lookup]
    unit = start.square().mean().sqrt() if release.scale_free_latents else torch.ones(())
    coordinates = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([coordinates], lr=options.learning_rate)

    def log_probabilities(ids: list[int], lookup: int) -> Tensor:
        def add(hidden: Tensor) -> Tensor:
            moved = hidden.clone()
            moved[0, lookup] += coordinates * unit
            return moved

        with lm.shifted(site, add, 1):
            logits: Tensor = lm.model(input_ids=torch.tensor([ids])).logits
        return logits[0].log_softmax(-1)

    def said_of(name: str, context: str, asked: Fact) -> Tensor:
        prompt = f"{context} {asked.prompt}".strip().replace(str(fact.subject), name)
        logits: Tensor = lm.model(input_ids=torch.tensor([tokenize(lm.tokenizer, prompt).ids])).logits
        return logits[0, -1].softmax(-1)

    references = [
        torch.stack([said_of(name, context, asked) for name in unknown_subjects]).mean(0)
        for context, asked in put
        if unknown_subjects
    ]
    truth = prompts[0].ids[prompts[0].answer]

    def away_from_references(predicted: Tensor, reference: Tensor) -> Tensor:
        divergence = (reference * (reference.log() - predicted)).sum()
        return divergence + options.hinge_weight * (predicted[truth] - reference[truth].log()).clamp(min=0)

    kept = tokenize(lm.tokenizer, same_subject_fact) if same_subject_fact else essence
    after_kept = log_probabilities(kept.ids, kept.lookup)[-1].detach()
    read = essence.lookup if release.kl_position == "lookup" else -1
    original = log_probabilities(essence.ids, essence.lookup)[read].detach()
    for step in range(options.steps):
        nll = torch.zeros(())
        for i, text in enumerate(prompts):
            if unknown_subjects:
                at_end = log_probabilities(text.ids[: text.answer], text.lookup)[-1]
                nll = nll + away_from_references(at_end, references[i]) / len(prompts)
                continue
            predicted = log_probabilities(text.ids, text.lookup)[text.answer - 1 : -1]
            tokens = torch.tensor(text.ids[text.answer :])
            nll = nll - predicted.gather(1, tokens[:, None]).mean() / len(prompts)
        new = log_probabilities(essence.ids, essence.lookup)[read]
        divergence = (new.exp() * (new - original)).sum()
        if same_subject_fact:
            after = log_probabilities(kept.ids, kept.lookup)[-1]
            nll = nll + options.same_subject_weight * (after.exp() * (after - after_kept)).sum()
        size = (unit * coordinates).norm() if step else torch.zeros(())
        loss = nll + options.kl_weight * divergence + options.weight_decay * size / start.square().sum()
        if loss < options.tolerance or step == options.steps - 1:
            break
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        limit = options.clamp * start.norm()
        with torch.no_grad():
            if (unit * coordinates).norm() > limit:
                coordinates *= limit / (unit * coordinates).norm()
    return start, start + coordinates.detach() * unit


@pytest.mark.parametrize(
    ("options", "release"),
    [
        (OPTIONS, DEFAULT),
        (OPTIONS, ReleaseProtocol(scale_free_latents=False)),
        (replace(OPTIONS, clamp=0.1), DEFAULT),
        (replace(OPTIONS, kl_weight=100.0), DEFAULT),
        (replace(OPTIONS, kl_weight=100.0, weight_decay=0.0), ReleaseProtocol(kl_position="lookup")),
        (replace(OPTIONS, weight_decay=0.0), DEFAULT),
    ],
    ids=["scale-free", "the release's units", "clamped", "essence kept", "subject kept", "free to move"],
)
def test_batched_targets_are_those_of_one_fact_at_a_time(
    lm: EditableLM, facts: list[Fact], options: LatentOptions, release: ReleaseProtocol
) -> None:
    with_subject = facts[:3]
    found = targets_for(lm, with_subject, 1, CONTEXTS, options, release=release)
    for i, fact in enumerate(with_subject):
        start, optimum = one_at_a_time(lm, fact, "mill", lm.layers[1], options, release=release)
        assert torch.allclose(found.start[:, i], start.double(), atol=1e-5)
        assert not torch.allclose(found.optimum[:, i], found.start[:, i], atol=1e-3)
        assert torch.allclose(found.optimum[:, i], optimum.double(), atol=1e-4)


UNKNOWN_SUBJECTS = ("Carla Zimmer", "Dario Quist Weber")


@pytest.mark.parametrize("hinge_weight", [0.0, 3.0])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_batched_references_are_those_of_one_fact_at_a_time(
    architecture: str, hinge_weight: float, facts: list[Fact]
) -> None:
    lm, some = random_lm(architecture), facts[:3]
    options = replace(FREE, steps=6, hinge_weight=hinge_weight, tolerance=0.0)
    aim = Aim(unknown_subjects=[UNKNOWN_SUBJECTS, UNKNOWN_SUBJECTS[:1], UNKNOWN_SUBJECTS])
    found = targets_for(lm, some, 1, CONTEXTS, options, aim)
    for i, fact in enumerate(some):
        start, optimum = one_at_a_time(lm, fact, fact.target, lm.layers[1], options, aim.unknown_subjects[i])
        assert not torch.allclose(found.optimum[:, i], found.start[:, i], atol=1e-3)
        assert torch.allclose(found.start[:, i], start.double(), atol=1e-5)
        assert torch.allclose(found.optimum[:, i], optimum.double(), atol=1e-4)


@pytest.mark.parametrize("target", ["word", "reference"])
def test_a_fact_in_other_words_counts_like_one_after_a_context(
    lm: EditableLM, facts: list[Fact], target: Literal["word", "reference"]
) -> None:
    some, options = facts[:2], replace(FREE, steps=6, tolerance=0.0)
    other_words = {
        some[1].id: [some[1].within(("In the morning,", " stood behind the")), some[1].within(("", " plays the"))]
    }
    aim = Aim("mill") if target == "word" else Aim(unknown_subjects=[UNKNOWN_SUBJECTS] * 2)
    found = targets_for(lm, some, 1, CONTEXTS, options, aim, rephrased=other_words)
    for i, fact in enumerate(some):
        words = {"word": "mill", "reference": fact.target}[target]
        unknown_subjects = UNKNOWN_SUBJECTS if target == "reference" else ()
        again = other_words.get(fact.id, ())
        _, optimum = one_at_a_time(lm, fact, words, lm.layers[1], options, unknown_subjects, rephrased=again)
        assert torch.allclose(found.optimum[:, i], optimum.double(), atol=1e-4)
    alone = targets_for(lm, some, 1, CONTEXTS, options, aim)
    assert torch.allclose(alone.optimum[:, 0], found.optimum[:, 0], atol=1e-5)
    assert not torch.allclose(alone.optimum[:, 1], found.optimum[:, 1], atol=1e-3)


def test_what_else_is_said_of_a_subject_is_kept(lm: EditableLM, facts: list[Fact]) -> None:
    fact = facts[0]
    same_subject_fact = replace(
        fact, id="other", prompt=f"The home of {fact.subject} is in", subject_end=12 + len(str(fact.subject))
    )
    options = replace(FREE, steps=6, same_subject_weight=50.0)
    aim = Aim("mill", same_subject_facts={fact.id: [same_subject_fact]})
    found = targets_for(lm, [fact], 1, CONTEXTS, options, aim)
    _, optimum = one_at_a_time(lm, fact, "mill", lm.layers[1], options, same_subject_fact=same_subject_fact)
    assert torch.allclose(found.optimum[:, 0], optimum.double(), atol=1e-4)
    without = targets_for(lm, [fact], 1, CONTEXTS, options)
    assert not torch.allclose(found.optimum, without.optimum, atol=1e-3)


def test_with_references_the_model_goes_on_as_with_unknown_subjects(lm: EditableLM, facts: list[Fact]) -> None:
    some = facts[:3]
    options = replace(FREE, steps=200, clamp=20.0, contexts=1, tolerance=0.0)
    aim = Aim(unknown_subjects=[UNKNOWN_SUBJECTS] * 3)
    found = targets_for(lm, some, 1, ("",), options, aim)
    hardly = targets_for(lm, some, 1, ("",), replace(options, steps=1), aim)
    assert (found.probability > hardly.probability).all()
    assert found.probability.min() > 0.8


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_batched_values_are_those_of_one_fact_at_a_time(architecture: str, facts: list[Fact]) -> None:
    lm, with_subject = random_lm(architecture), facts[:3]
    options = replace(FREE, steps=6)
    found = values_for(lm, with_subject, options)
    for i, fact in enumerate(with_subject):
        start, optimum = one_at_a_time(lm, fact, fact.target, lm.projections[1], options)
        assert not torch.allclose(found[:, i], start.double(), atol=1e-3)
        assert torch.allclose(found[:, i], optimum.double(), atol=1e-4)


def test_the_place_of_the_divergence_matters(lm: EditableLM, facts: list[Fact]) -> None:
    options = replace(FREE, steps=6, kl_weight=100.0)
    last, lookup = (
        targets_for(lm, facts[:1], 1, CONTEXTS, options, release=release).optimum
        for release in (DEFAULT, ReleaseProtocol(kl_position="lookup"))
    )
    assert not torch.allclose(last, lookup, atol=1e-3)


def test_batch_size_does_not_matter(any_lm: EditableLM, facts: list[Fact]) -> None:
    together = values_for(any_lm, facts, LatentOptions(steps=4))
    alone = values_for(any_lm, facts, LatentOptions(steps=4, facts_per_batch=1))
    assert torch.allclose(together, alone, atol=1e-4)


def test_batches_are_halved_where_memory_does_not_suffice(
    lm: EditableLM, facts: list[Fact], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = LatentOptions(steps=4)
    expected = values_for(lm, facts, options)
    solve, tried = LatentProblem.solve, []

    def short_of_memory(self: LatentProblem, facts: list[Fact], objective: LatentObjective) -> tuple[Tensor, Tensor]:
        tried.append(len(facts))
        if len(facts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return solve(self, facts, objective)

    monkeypatch.setattr(LatentProblem, "solve", short_of_memory)
    found = values_for(lm, facts, options)
    assert torch.allclose(found, expected, atol=1e-4)
    assert "Original values: not enough memory" in caplog.text
    assert sum(size > 1 for size in tried) <= 2  # what does not fit is not tried again
    assert sum(size == 1 for size in tried) == len(facts)


def test_optimizing_raises_the_probability_of_the_answer(lm: EditableLM, facts: list[Fact]) -> None:
    before = targets_for(lm, facts, 0, ("",), LatentOptions(steps=1))
    after = targets_for(lm, facts, 0, ("",), replace(FREE, steps=25))
    assert torch.equal(before.optimum, before.start)
    assert (after.probability > before.probability).all()


def test_what_is_known_of_an_optimum_is_what_the_model_says_with_it_in_place(lm: EditableLM, facts: list[Fact]) -> None:
    facts = [*facts, replace(facts[3], target="a")]
    found = targets_for(lm, facts, 0, ("",), replace(FREE, learning_rate=0.5, clamp=4.0), "a")
    assert found.contexts == ("",)
    assert found.original_lost.any()
    assert not found.original_lost.all()
    for i, fact in enumerate(facts):
        moved = found.optimum[:, i].float()
        log_probability, exact = [], []
        for answer in ("a", fact.target):
            text = tokenize(lm.tokenizer, Prompt.about(fact, answer=answer))

            def put_in(hidden: Tensor, lookup: int = text.lookup, moved: Tensor = moved) -> Tensor:
                return hidden.index_put((torch.tensor([0]), torch.tensor([lookup])), moved)

            with torch.no_grad(), lm.shifted(lm.layers[0], put_in, 1):
                logits = lm.model(input_ids=torch.tensor([text.ids])).logits[0, text.answer - 1 : -1]
            tokens = torch.tensor(text.ids[text.answer :])
            log_probability.append(logits.log_softmax(-1).gather(1, tokens[:, None]).sum())
            exact.append(bool((logits.argmax(-1) == tokens).all()))
        assert found.probability[i].item() == pytest.approx(log_probability[0].exp().item(), rel=1e-4)
        assert found.original_lost[i].item() == (not exact[1])


def test_a_fact_that_has_its_answer_is_left_alone(lm: EditableLM, facts: list[Fact]) -> None:
    found = targets_for(lm, facts, 1, CONTEXTS, replace(FREE, steps=6, tolerance=1e9))
    assert torch.equal(found.optimum, found.start)


def test_a_fact_that_is_done_moves_no_further_while_others_do(lm: EditableLM, facts: list[Fact]) -> None:
    facts = [replace(fact, subject=None) for fact in facts]  # all in one batch, since all look up their last token
    halfway = targets_for(lm, facts, 0, ("",), replace(FREE, steps=6), "a")
    losses = -halfway.probability.log()  # the answer is a single token
    done = int(losses.argmin())
    options = replace(FREE, steps=12, tolerance=1.0001 * losses[done].item())
    found = targets_for(lm, facts, 0, ("",), options, "a")
    others = [i for i in range(len(facts)) if i != done]
    assert torch.allclose(found.optimum[:, done], halfway.optimum[:, done], atol=1e-6)
    assert not torch.allclose(found.optimum[:, others], halfway.optimum[:, others], atol=1e-3)


def test_vectors_stay_within_the_clamp(lm: EditableLM, facts: list[Fact]) -> None:
    found = targets_for(lm, facts, 0, CONTEXTS, replace(FREE, steps=25, clamp=0.2))
    moved = (found.optimum - found.start).norm(dim=0) / found.start.norm(dim=0)
    assert moved.max().item() == pytest.approx(0.2, rel=1e-4)


def test_losses_that_are_not_finite_are_refused_by_fact(lm: EditableLM, facts: list[Fact]) -> None:
    lm.set_weight(2, lm.weight(2) * float("nan"))
    with pytest.raises(ValueError, match=r"facts \['[0-3]'.*\] gave NaN or infinite losses"):
        values_for(lm, facts, OPTIONS)


@pytest.mark.parametrize("name", ["steps", "learning_rate", "clamp", "facts_per_batch"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_options_that_nothing_can_be_optimized_with_are_refused_by_name(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=rf"latents\.{name} is {value}: give a positive number") as refused:
        LatentOptions(**options)
    assert refused.value.parameter == f"latents.{name}"
    assert repr(refused.value.value) == repr(value)


@pytest.mark.parametrize("name", ["kl_weight", "weight_decay", "tolerance"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_that_mean_nothing_are_refused_by_name(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(InputError, match=rf"latents\.{name} is {value}: give zero or a positive number"):
        LatentOptions(**options)


KEPT_WEIGHTS = (0.3, 0.2, 0.1)


def rows_of(lm: EditableLM, facts: list[Fact]) -> Rows:
    """A fact in five ways, another in three with three prompts to keep."""
    some, more = facts[:2], {facts[0].id: [facts[0].within(("In the morning,", " was late")), facts[0]]}
    kept = [Kept(1, i, facts[1], False, weight) for i, weight in enumerate(KEPT_WEIGHTS)]
    return Rows.of(lm, some, ["", ""], PromptVariants(CONTEXTS, more), kept)


def test_steps_take_turns_with_all_ways_but_always_look_at_the_bare_prompt(lm: EditableLM, facts: list[Fact]) -> None:
    rows = rows_of(lm, facts)
    turns = [rows.minibatch(step, 2) for step in range(4)]
    assert [sorted(set(minibatch.variant[~minibatch.keep].tolist())) for minibatch in turns] == [
        [0, 1],
        [0, 2],
        [0, 3],
        [0, 4],
    ]
    for minibatch in turns:
        weights = torch.zeros(2).index_add(0, minibatch.fact[~minibatch.keep], minibatch.weight[~minibatch.keep])
        assert torch.allclose(weights, torch.ones(2)), "a fact's loss is a mean, however many ways it has in this turn"
    assert turns[3].fact[~turns[3].keep].tolist() == [0, 1, 0], "the other fact has no fifth way"


def test_prompts_to_keep_take_turns_and_count_for_all_of_their_fact(lm: EditableLM, facts: list[Fact]) -> None:
    rows = rows_of(lm, facts)
    turns = [rows.minibatch(step, 2) for step in range(4)]
    assert [minibatch.kept[minibatch.keep].tolist() for minibatch in turns] == [[0], [1], [2], [0]]
    weights = [minibatch.weight[minibatch.keep].item() for minibatch in turns[:3]]
    assert weights == pytest.approx([len(KEPT_WEIGHTS) * weight for weight in KEPT_WEIGHTS])
    alone = rows.minibatch(2, 1)
    assert (alone.variant[~alone.keep] == 0).all()
    assert alone.kept[alone.keep].tolist() == [2], "there is always something to keep"
    both = rows.minibatch(1, 3)
    assert sorted(both.kept[both.keep].tolist()) == [0, 2]
    assert both.weight[both.keep].sum().item() == pytest.approx(1.5 * (0.1 + 0.3))


@pytest.mark.parametrize("pass_tokens", [0, 5, 10**6])
def test_rows_in_parts_of_similar_lengths_have_the_same_vectors(
    lm: EditableLM, facts: list[Fact], pass_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(FREE, steps=6, tolerance=0.0)
    whole = targets_for(lm, facts, 1, CONTEXTS, options).optimum
    monkeypatch.setattr(latent_rows, "PASS_TOKENS", pass_tokens)
    assert torch.allclose(targets_for(lm, facts, 1, CONTEXTS, options).optimum, whole, atol=1e-4)
    parts = len(rows_of(lm, facts).parts)
    assert parts == 1 if pass_tokens == 10**6 else parts > 1


def test_a_step_that_looks_at_all_ways_is_the_whole_problem(lm: EditableLM, facts: list[Fact]) -> None:
    rows = rows_of(lm, facts)
    assert rows.minibatch(3, None) is rows
    assert rows.minibatch(3, 5) is rows
    assert rows.minibatch(3, 2) is not rows
    options = replace(FREE, steps=6, tolerance=0.0)
    whole = targets_for(lm, facts[:2], 1, CONTEXTS, options).optimum
    assert torch.equal(whole, targets_for(lm, facts[:2], 1, CONTEXTS, replace(options, prompts_per_step=3)).optimum)
    in_turns = targets_for(lm, facts[:2], 1, CONTEXTS, replace(options, prompts_per_step=2)).optimum
    assert not torch.allclose(whole, in_turns, atol=1e-3)
