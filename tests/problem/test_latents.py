"""Latent optimisation: batched facts against one fact at a time, transcribed from the published procedure."""

import pytest
import torch
from torch import Tensor

from zu_lightning import EditableLM, Fact, LatentOptions, neutral_targets, original_values
from zu_lightning.lm.tokens import collate, tokenize, tokenize_fact
from zu_lightning.problem.latents import _LatentProblem

CONTEXTS = ("", "It was late.", "In the morning, a quiet river stood.")
OPTIONS = LatentOptions(steps=6)


def one_at_a_time(lm: EditableLM, fact: Fact, answer: str, layer: int, options: LatentOptions) -> tuple[Tensor, Tensor]:
    """The published procedure for one fact with one vector, full forward passes and no batching: start and optimum."""
    prompts = [tokenize_fact(lm.tokenizer, fact, context=context, answer=answer) for context in CONTEXTS]
    essence = tokenize(lm.tokenizer, f"{fact.subject} is a", lookup_end=len(fact.subject or ""))
    (record,) = lm.record(collate([prompts[0]], lm.tokenizer), [lm.layers[layer]])
    start = record.output[0, prompts[0].lookup]
    unit = start.square().mean().sqrt() if options.scale_free else 1.0
    coordinates = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([coordinates], lr=options.learning_rate)

    def log_probabilities(ids: list[int], lookup: int) -> Tensor:
        def add(hidden: Tensor) -> Tensor:
            moved = hidden.clone()
            moved[0, lookup] += coordinates * unit
            return moved

        with lm.shifted(lm.layers[layer], add):
            return lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)

    original = log_probabilities(essence.ids, essence.lookup)[-1].detach()
    for step in range(options.steps):
        nll = torch.zeros(())
        for text in prompts:
            predicted = log_probabilities(text.ids, text.lookup)[text.answer - 1 : -1]
            tokens = torch.tensor(text.ids[text.answer :])
            nll = nll - predicted.gather(1, tokens[:, None]).mean() / len(prompts)
        new = log_probabilities(essence.ids, essence.lookup)[-1]
        divergence = (new.exp() * (new - original)).sum()
        size = (unit * coordinates).norm() if step else torch.zeros(())
        loss = nll + options.kl_weight * divergence + options.weight_decay * size / start.square().sum()
        if loss < options.tolerance or step == options.steps - 1:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        limit = options.clamp * start.norm()
        with torch.no_grad():
            if (unit * coordinates).norm() > limit:
                coordinates *= limit / (unit * coordinates).norm()
    return start, start + coordinates.detach() * unit


@pytest.mark.parametrize(
    "options", [OPTIONS, LatentOptions(steps=6, scale_free=False), LatentOptions(steps=6, clamp=0.1)]
)
def test_batched_targets_are_those_of_one_fact_at_a_time(
    lm: EditableLM, facts: list[Fact], options: LatentOptions
) -> None:
    with_subject = facts[:3]
    latents = neutral_targets(lm, with_subject, 1, "mill", CONTEXTS, options)
    for i, fact in enumerate(with_subject):
        start, optimum = one_at_a_time(lm, fact, "mill", 1, options)
        assert torch.allclose(latents.start[:, i], start.double(), atol=1e-5)
        assert not torch.allclose(latents.optimum[:, i], latents.start[:, i], atol=1e-3)
        assert torch.allclose(latents.optimum[:, i], optimum.double(), atol=1e-4)


def test_batch_size_does_not_matter(any_lm: EditableLM, facts: list[Fact]) -> None:
    together = original_values(any_lm, facts, 1, CONTEXTS, LatentOptions(steps=4))
    alone = original_values(any_lm, facts, 1, CONTEXTS, LatentOptions(steps=4, facts_per_batch=1))
    assert torch.allclose(together, alone, atol=1e-4)


def test_batches_are_halved_where_memory_does_not_suffice(
    lm: EditableLM, facts: list[Fact], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    options = LatentOptions(steps=4)
    expected = original_values(lm, facts, 1, CONTEXTS, options)
    solve, tried = _LatentProblem.solve, []

    def short_of_memory(self: _LatentProblem, facts: list[Fact], answers: list[str]) -> tuple[Tensor, Tensor]:
        tried.append(len(facts))
        if len(facts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return solve(self, facts, answers)

    monkeypatch.setattr(_LatentProblem, "solve", short_of_memory)
    found = original_values(lm, facts, 1, CONTEXTS, options)
    assert torch.allclose(found, expected, atol=1e-4)
    assert "memory does not suffice" in caplog.text
    assert sum(size > 1 for size in tried) <= 2  # what does not fit is not tried again
    assert sum(size == 1 for size in tried) == len(facts)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    lm: EditableLM, facts: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(_LatentProblem, "solve", broken)
    with pytest.raises(RuntimeError, match="broken"):
        original_values(lm, facts, 1, CONTEXTS, OPTIONS)


# A random model's states are small, and the decay, which is relative to them, would hold every vector in place.
FREE = {"weight_decay": 0.0, "kl_weight": 0.0}


def test_optimising_raises_the_probability_of_the_answer(lm: EditableLM, facts: list[Fact]) -> None:
    before = neutral_targets(lm, facts, 0, "mill", ("",), LatentOptions(steps=1))
    after = neutral_targets(lm, facts, 0, "mill", ("",), LatentOptions(steps=25, **FREE))
    assert torch.equal(before.optimum, before.start)
    assert (after.probability > before.probability).all()


def test_vectors_stay_within_the_clamp(lm: EditableLM, facts: list[Fact]) -> None:
    latents = neutral_targets(lm, facts, 0, "mill", CONTEXTS, LatentOptions(steps=25, clamp=0.2, **FREE))
    moved = (latents.optimum - latents.start).norm(dim=0) / latents.start.norm(dim=0)
    assert moved.max().item() == pytest.approx(0.2, rel=1e-4)


def test_nonsense_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents\.steps must be positive, but is 0"):
        LatentOptions(steps=0)
