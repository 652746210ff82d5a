"""Causal tracing at the lookup token against the same interventions, made by hand."""

import pytest
from torch import nn

from tests.conftest import random_lm
from tests.tracing.conftest import output, probability
from zu_lightning import EditableLM, Fact, causal_trace
from zu_lightning.lm.tokens import Prompt, tokenize


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_the_trace_is_that_of_interventions_by_hand(architecture: str, traced: list[Fact]) -> None:
    lm = random_lm(architecture)
    texts = [tokenize(lm.tokenizer, Prompt.about(fact, answer=fact.target)) for fact in traced]
    embeddings = lm.model.get_input_embeddings()

    def mean(*changes: tuple[nn.Module, int]) -> float:
        """Mean probability with the state of a module at the lookup token of the fact so many places before."""
        total = 0.0
        for i, text in enumerate(texts):
            donors = [(module, texts[i - back]) for module, back in changes]
            states = [(module, [text.lookup], output(lm, donor, module)[donor.lookup]) for module, donor in donors]
            total += probability(lm, text, states)
        return total / len(texts)

    trace = causal_trace(lm, traced)
    assert trace.clean == pytest.approx(mean(), rel=1e-4)
    assert trace.corrupted == pytest.approx(mean((embeddings, 1)), rel=1e-4)
    assert [layer.layer for layer in trace.layers] == list(range(len(lm.layers)))
    for layer, found in zip(lm.layers, trace.layers, strict=True):
        assert found.corrupted == pytest.approx(mean((layer, 1)), rel=1e-4)
        assert found.restored == pytest.approx(mean((embeddings, 1), (layer, 0)), rel=1e-4)
    assert trace.corrupted != pytest.approx(trace.clean, rel=1e-3)
    assert causal_trace(lm, traced) == trace
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_one_fact_cannot_be_traced(lm: EditableLM, traced: list[Fact]) -> None:
    with pytest.raises(ValueError, match="`facts` has 1"):
        causal_trace(lm, traced[:1])
