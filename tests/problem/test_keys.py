"""Keys and the scale-free problem."""

import pytest
import torch

from zu_lightning import EditableLM, Fact, LayerProblem, lookup_keys
from zu_lightning.lm.tokens import collate, tokenize_fact
from zu_lightning.methods import rules

CONTEXTS = ("", "It was late.", "In the morning.")


def test_the_bare_prompt_weighs_as_much_as_all_others(any_lm: EditableLM, facts: list[Fact]) -> None:
    keys = lookup_keys(any_lm, facts, 1, CONTEXTS)
    for i, fact in enumerate(facts):
        alone = []
        for context in CONTEXTS:
            text = tokenize_fact(any_lm.tokenizer, fact, context=context)
            (record,) = any_lm.record(collate([text], any_lm.tokenizer), [any_lm.projections[1]])
            alone.append(record.input[0, text.lookup].double())
        expected = 0.5 * alone[0] + 0.25 * alone[1] + 0.25 * alone[2]
        assert torch.allclose(keys[:, i], expected, atol=1e-5)


def random_problem(scale: float = 1.0) -> tuple[torch.Tensor, LayerProblem]:
    generator = torch.Generator().manual_seed(0)
    weight, keys, residuals, values, retain = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((6, 9), (9, 3), (6, 3), (6, 3), (9, 20))
    )
    # The same layer in a model whose keys are `scale` times as large and whose weights as many times smaller.
    moment = scale**2 * retain @ retain.T / 20
    return weight / scale, LayerProblem(0, scale * keys, residuals, values, moment)


RULES = [
    rules.ZeroUnlearn(),
    rules.ZeroUnlearnGD(threshold=0.5),
    rules.ZeroUnlearnSoft(),
    rules.Memit(),
    rules.AlphaEdit(threshold=0.5),
    rules.Rome(),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_scale_free_rules_do_the_same_in_a_model_of_another_scale(rule: rules.Rule) -> None:
    weight, problem = random_problem()
    scaled_weight, scaled_problem = random_problem(scale=100.0)
    effect = rule(weight, problem).dense() @ problem.keys
    scaled_effect = rule(scaled_weight, scaled_problem).dense() @ scaled_problem.keys
    assert torch.allclose(effect, scaled_effect, rtol=1e-6, atol=1e-9)


def test_the_papers_units_do_not_carry_over() -> None:
    rule = rules.ZeroUnlearn(scale_free=False, retain_weight=15000.0, forget_weight=50.0, ridge=1.0)
    (weight, problem), (scaled_weight, scaled_problem) = random_problem(), random_problem(scale=0.001)
    effect = rule(weight, problem).dense() @ problem.keys
    scaled_effect = rule(scaled_weight, scaled_problem).dense() @ scaled_problem.keys
    assert not torch.allclose(effect, scaled_effect, rtol=0.1)


def test_rome_meets_every_fact_in_turn() -> None:
    weight, problem = random_problem()
    update = rules.Rome(scale_free=False)(weight, problem)
    assert update.rank == 3
    assert torch.allclose(update.dense() @ problem.keys[:, 2], problem.residuals[:, 2])
