"""Causal tracing against the same interventions, made by hand on the plain model."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from zu_lightning import EditableLM, Fact, causal_trace
from zu_lightning.lm.tokens import TokenizedText, tokenize_fact

States = dict[nn.Module, Tensor]


@pytest.fixture
def traced(facts: list[Fact]) -> list[Fact]:
    """Facts with a subject."""
    return [fact for fact in facts if fact.subject]


def hidden_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def probability(lm: EditableLM, text: TokenizedText, replaced: States) -> float:
    """Of the answer to one prompt, with other states at the lookup token after some modules."""

    def put(state: Tensor) -> Callable[..., object]:
        def hook(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> object:
            changed = hidden_of(output).clone()
            changed[0, text.lookup] = state
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return hook

    handles = [module.register_forward_hook(put(state)) for module, state in replaced.items()]
    with torch.no_grad():
        log_probability = lm.model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    total = sum(log_probability[i - 1, text.ids[i]].item() for i in range(text.answer, len(text.ids)))
    return math.exp(total)


def states(lm: EditableLM, text: TokenizedText, modules: list[nn.Module]) -> States:
    """What the modules return at the lookup token."""
    found: States = {}

    def keep(module: nn.Module, args: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found[module] = hidden_of(output)[0, text.lookup]

    handles = [module.register_forward_hook(keep) for module in modules]
    with torch.no_grad():
        lm.model(torch.tensor([text.ids]))
    for handle in handles:
        handle.remove()
    return found


def test_the_trace_is_that_of_interventions_by_hand(any_lm: EditableLM, traced: list[Fact]) -> None:
    lm = any_lm
    texts = [tokenize_fact(lm.tokenizer, fact, answer=fact.target) for fact in traced]
    embeddings = lm.model.get_input_embeddings()
    own = [states(lm, text, [embeddings, *lm.layers]) for text in texts]
    other = [own[i - 1] for i in range(len(own))]  # of the fact before

    def mean(replaced: Callable[[int], States]) -> float:
        return sum(probability(lm, text, replaced(i)) for i, text in enumerate(texts)) / len(texts)

    trace = causal_trace(lm, traced)
    assert trace.clean == pytest.approx(mean(lambda i: {}), rel=1e-4)
    assert trace.corrupted == pytest.approx(mean(lambda i: {embeddings: other[i][embeddings]}), rel=1e-4)
    assert [layer.layer for layer in trace.layers] == list(range(len(lm.layers)))
    for layer, found in zip(lm.layers, trace.layers, strict=True):
        assert found.corrupted == pytest.approx(mean(lambda i, at=layer: {at: other[i][at]}), rel=1e-4)  # type: ignore[misc]
        restored = mean(lambda i, at=layer: {embeddings: other[i][embeddings], at: own[i][at]})  # type: ignore[misc]
        assert found.restored == pytest.approx(restored, rel=1e-4)
    assert trace.corrupted != pytest.approx(trace.clean, rel=1e-3)


def test_tracing_leaves_no_hooks(lm: EditableLM, traced: list[Fact]) -> None:
    assert causal_trace(lm, traced) == causal_trace(lm, traced)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_one_fact_cannot_be_traced(lm: EditableLM, traced: list[Fact]) -> None:
    with pytest.raises(ValueError, match="`facts` has 1"):
        causal_trace(lm, traced[:1])
