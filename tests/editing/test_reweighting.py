"""Facts that are weighed anew: exact weights, and rounds that reach what one strength for all does not."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from tests.conftest import DEMO, random, random_lm, random_problem
from zu_lightning import (
    AlphaEdit,
    EditableLM,
    EditingMethod,
    Fact,
    LatentOptions,
    LayerProblem,
    LowRankUpdate,
    Memit,
    ReadingOptions,
    Request,
    RetainText,
    ZeroUnlearn,
    ZeroUnlearnGD,
    ZeroUnlearnSoft,
    apply_update,
    layer_problem,
    prepare,
    read_texts,
)
from zu_lightning.editing import reweighting
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.reweighting import answer_probability, solve_with_reweighting
from zu_lightning.lm.tokens import Prompt, tokenize

METHODS = [Memit(), ZeroUnlearn(), ZeroUnlearnSoft(), ZeroUnlearnGD(threshold=0.5), AlphaEdit(threshold=0.5)]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.parametrize("scale_free", [True, False])
def test_a_fact_of_weight_two_counts_as_if_it_were_there_twice(method: EditingMethod, scale_free: bool) -> None:
    weight, problem = random_problem()
    method = replace(method, scale_free=scale_free)
    deviations = torch.zeros(9, 3, 2, dtype=torch.float64)
    deviations[0, 0, 1] = deviations[3, 1, 0] = 0.2
    varied = replace(problem, deviations=deviations)
    twice = LayerProblem(
        0,
        torch.cat([problem.keys, problem.keys[:, :1]], 1),
        torch.cat([problem.residuals, problem.residuals[:, :1]], 1),
        torch.cat([problem.values, problem.values[:, :1]], 1),
        problem.second_moment,
        deviations=torch.cat([deviations, deviations[:, :1]], 1),
    )
    weighed = replace(varied, fact_weights=torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    found = method(weight, weighed).dense()
    assert torch.allclose(found, method(weight, twice).dense(), atol=1e-9)
    assert not torch.allclose(found, method(weight, varied).dense(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_probability_is_a_mean_over_all_ways_to_put_a_fact(architecture: str, facts: list[Fact]) -> None:
    lm, some = random_lm(architecture), facts[:3]
    more = {some[0].id: [some[0].within(("In the morning,", " stood behind the"))]}
    variants = PromptVariants(("", "It was late."), more, {some[2].id: ["Nobody saw the river."]})
    found = answer_probability(lm, some, variants)
    for i, fact in enumerate(some):
        (first, *_) = tokenize(lm.tokenizer, Prompt.about(fact, answer=fact.target)).ids[
            len(tokenize(lm.tokenizer, fact).ids) :
        ]
        said = []
        for context, put in variants.of(fact):
            ids = torch.tensor([tokenize(lm.tokenizer, Prompt.about(put, context=context)).ids])
            with torch.no_grad():
                said.append(lm.model(ids).logits[0, -1].softmax(-1)[first])
        assert found[i].item() == pytest.approx(torch.stack(said).mean().item(), rel=1e-4)


def test_without_reweighting_it_is_the_method(lm: EditableLM, facts: list[Fact]) -> None:
    weight = lm.weight(1)
    d_out, d_in = weight.shape
    generator = torch.Generator().manual_seed(0)
    keys, residuals, values = (torch.randn(d, 3, generator=generator).double() for d in (d_in, d_out, d_out))
    problem = LayerProblem(1, keys, residuals, values, torch.eye(d_in, dtype=torch.float64))
    found = solve_with_reweighting(lm, Memit(), problem, facts[:3], PromptVariants())
    assert torch.equal(found.dense(), Memit()(weight, problem).dense())


def test_rounds_forget_what_one_strength_leaves_and_the_model_stays_as_it_was(
    demo_lm: EditableLM, demo_facts: list[Fact]
) -> None:
    some, variants = demo_facts[:24:6], PromptVariants()
    request = Request(some, RetainText(read_texts(str(DEMO / "corpus.txt"), 60, "corpus"), ReadingOptions()))
    method = ZeroUnlearnSoft(retain_weight=20.0, optimize_values=False, latents=LatentOptions(contexts=1))
    problem = layer_problem(demo_lm, request, 0, prepare(demo_lm, request, [0], method))
    weight, left = demo_lm.weight(0).clone(), []
    for number in (0, 4):
        update = solve_with_reweighting(
            demo_lm, replace(method, reweighting_iterations=number), problem, some, variants
        )
        assert torch.equal(demo_lm.weight(0), weight)
        apply_update(demo_lm, 0, update)
        left.append(answer_probability(demo_lm, some, variants).max().item())
        demo_lm.set_weight(0, weight)
    assert left[1] < 0.2 < 0.5 < left[0]


@dataclass(frozen=True, kw_only=True)
class Recorded(Memit):
    """MEMIT that remembers how much each fact counted."""

    seen: ClassVar[list[torch.Tensor | None]] = []

    def __call__(self, weight: torch.Tensor, problem: LayerProblem) -> LowRankUpdate:
        self.seen.append(problem.fact_weights)
        return super().__call__(weight, problem)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([[0.5, 0.0, 0.2], [0.05, 0.0, 0.2], [0.05, 0.0, 0.0]], [None, [3, 1, 3], [3, 1, 9]]),
        ([[0.1, 0.1, 0.0]], [None]),
    ],
    ids=["two rounds", "nothing is known any more"],
)
def test_only_facts_that_are_still_known_weigh_more(
    probabilities: list[list[float]],
    expected: list[list[float] | None],
    lm: EditableLM,
    facts: list[Fact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    d_out, d_in = lm.weight(1).shape
    keys, outputs = random(d_in, 3, seed=1), random(d_out, 3, seed=2)
    problem = LayerProblem(1, keys, outputs, outputs, torch.eye(d_in, dtype=torch.float64))
    found = iter(probabilities)
    monkeypatch.setattr(reweighting, "answer_probability", lambda *_: torch.tensor(next(found), dtype=torch.float64))
    Recorded.seen.clear()
    reweighting.solve_with_reweighting(lm, Recorded(reweighting_iterations=2), problem, facts[:3], PromptVariants())
    assert [None if weights is None else weights.tolist() for weights in Recorded.seen] == expected
