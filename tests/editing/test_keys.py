"""Keys and hidden states at the lookup tokens, on every architecture, against one text at a time."""

from collections.abc import Callable

import pytest
import torch

from zu_lightning import EditableLM, Fact, lookup_keys
from zu_lightning.editing.keys import layer_outputs, mean_keys, varied_keys
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.lm.hooks import Record, hooked
from zu_lightning.lm.tokens import Prompt, collate, tokenize

CONTEXTS = ("", "It was late.", "In the morning.")


def at_lookup(lm: EditableLM, fact: Fact, module: torch.nn.Module, context: str = "") -> Record:
    """What a module receives and returns at the lookup token of a single text."""
    text = tokenize(lm.tokenizer, Prompt.about(fact, context=context))
    (record,) = lm.record(collate([text], lm.tokenizer), [module])
    return Record(record.input[0, text.lookup].double(), record.output[0, text.lookup].double())


def test_the_bare_prompt_weighs_as_much_as_all_others(any_lm: EditableLM, facts: list[Fact]) -> None:
    found = lookup_keys(any_lm, facts, 1, CONTEXTS)
    assert found.dtype == torch.float64
    for i, fact in enumerate(facts):
        bare, first, second = (at_lookup(any_lm, fact, any_lm.projections[1], context).input for context in CONTEXTS)
        assert torch.allclose(found[:, i], 0.5 * bare + 0.25 * first + 0.25 * second, atol=1e-5)


def test_a_fact_in_other_words_counts_like_one_after_a_context(lm: EditableLM, facts: list[Fact]) -> None:
    ada, bruno = facts[:2]
    otherwise = ada.within(("In the morning,", " stood behind the"))
    found = lookup_keys(lm, [ada, bruno], 1, ("", "It was late."), {ada.id: [otherwise]})
    bare, late, other = (
        at_lookup(lm, *put).input
        for put in (
            (ada, lm.projections[1]),
            (ada, lm.projections[1], "It was late."),
            (otherwise, lm.projections[1]),
        )
    )
    assert torch.allclose(found[:, 0], 0.5 * bare + 0.25 * late + 0.25 * other, atol=1e-5)
    assert torch.allclose(found[:, 1], lookup_keys(lm, [bruno], 1, ("", "It was late."))[:, 0], atol=1e-6)
    alone = lookup_keys(lm, [ada, bruno], 1, ("",), {ada.id: [otherwise]})
    assert torch.allclose(alone[:, 0], 0.5 * bare + 0.5 * other, atol=1e-5)
    assert torch.allclose(alone[:, 1], at_lookup(lm, bruno, lm.projections[1]).input, atol=1e-5)


def test_without_other_contexts_the_bare_prompt_is_all(lm: EditableLM, facts: list[Fact]) -> None:
    found = lookup_keys(lm, facts, 1, ("",))
    for i, fact in enumerate(facts):
        assert torch.allclose(found[:, i], at_lookup(lm, fact, lm.projections[1]).input, atol=1e-5)


def test_outputs_are_those_of_the_bare_prompts(any_lm: EditableLM, facts: list[Fact]) -> None:
    found = layer_outputs(any_lm, facts, 1)
    assert found.dtype == torch.float64
    for i, fact in enumerate(facts):
        assert torch.allclose(found[:, i], at_lookup(any_lm, fact, any_lm.layers[1]).output, atol=1e-5)


@pytest.mark.parametrize("compute", [mean_keys, layer_outputs])
def test_batches_do_not_matter(lm: EditableLM, facts: list[Fact], compute: Callable[..., torch.Tensor]) -> None:
    variants = [PromptVariants(CONTEXTS)] * (compute is mean_keys)
    passes: list[int] = []
    with hooked(lm.layers[1].register_forward_pre_hook(lambda _, args: passes.append(len(args[0])))):
        together, alone = (compute(lm, facts, 1, *variants, batch_tokens) for batch_tokens in (2048, 1))
    assert len(passes) > len(facts)
    assert torch.allclose(together, alone, atol=1e-6)


def test_every_variant_weighs_equally_and_deviations_give_the_covariance(any_lm: EditableLM, facts: list[Fact]) -> None:
    ada, bruno = facts[:2]
    otherwise = ada.within(("In the morning,", " stood behind the"))
    variants = PromptVariants(CONTEXTS, {ada.id: [otherwise]}, {bruno.id: ["Ada Novak works as a baker."]})
    found = varied_keys(any_lm, [ada, bruno], 1, variants)
    for i, fact in enumerate((ada, bruno)):
        put = torch.stack(
            [at_lookup(any_lm, other, any_lm.projections[1], context).input for context, other in variants.of(fact)]
        )
        assert torch.allclose(found.mean[:, i], put.mean(0), atol=1e-5)
        covariance = torch.cov(put.mT, correction=0)
        assert covariance.norm() > 0
        assert torch.allclose(found.deviations[:, i] @ found.deviations[:, i].mT, covariance, atol=1e-5)


def test_a_fact_with_fewer_variants_has_no_more_covariance(lm: EditableLM, facts: list[Fact]) -> None:
    more = PromptVariants(("",), examples={facts[0].id: ["It was late.", "In the morning."]})
    together, alone = varied_keys(lm, facts[:2], 1, more), varied_keys(lm, facts[1:2], 1, PromptVariants(CONTEXTS[:1]))
    assert together.deviations.shape[1:] == (2, 3)
    assert torch.allclose(together.mean[:, 1], alone.mean[:, 0], atol=1e-5)
    assert torch.allclose(together.deviations[:, 1], torch.zeros(()).double(), atol=1e-5)
