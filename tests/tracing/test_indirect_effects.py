"""Indirect effects against interventions by hand, on planted knowledge, and in any batches and processes."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import random_lm
from tests.tracing.conftest import output, probability
from zu_lightning import EditableLM, Fact, InputError
from zu_lightning.lm import architecture, hooks
from zu_lightning.tracing.indirect_effects import (
    KINDS,
    IndirectEffects,
    TraceOptions,
    trace_effects,
    window_at,
)
from zu_lightning.tracing.recommendation import recommend
from zu_lightning.tracing.traced_prompts import ROLES, traced_text

INTERCHANGED = TraceOptions(corruption="interchange", samples=1, only_known=False)


def modules_of(lm: EditableLM, kind: str) -> list[nn.Module]:
    if kind == "hidden":
        return [*lm.layers]
    if kind == "attention":
        return [architecture.attention(layer, lm.model) for layer in lm.layers]
    return [architecture.mlp_module(lm.model, *at) for at in zip(lm.projections, lm.layers, strict=True)]


def test_effects_are_those_of_interventions_by_hand(any_lm: EditableLM, traced: list[Fact]) -> None:
    lm, window, traced = any_lm, 2, traced[:2]
    texts = [traced_text(lm.tokenizer, fact) for fact in traced]
    found = trace_effects(lm, traced, replace(INTERCHANGED, window=window))
    embeddings = lm.model.get_input_embeddings()
    embedded = [output(lm, text.text, embeddings) for text in texts]
    for i, text in enumerate(texts):
        donor = embedded[i - 1][list(texts[i - 1].subject)]
        count = len(text.subject)
        corrupted = torch.stack([donor[max(0, len(donor) - count + j)] for j in range(count)])
        subject = (embeddings, text.subject, corrupted)
        baseline = probability(lm, text.text, [subject])
        assert found.corrupted[i].item() == pytest.approx(baseline, rel=1e-4)
        for kind in KINDS:
            modules = modules_of(lm, kind)
            own = [output(lm, text.text, module) for module in modules]
            for layer in range(len(lm.layers)):
                near = [layer] if kind == "hidden" else window_at(layer, window, len(lm.layers))
                for role in ROLES:
                    at = [position for position in text.roles if text.roles[position] == role]
                    changes = [[subject, *((modules[j], [p], own[j][p]) for j in near)] for p in at]
                    effects = [probability(lm, text.text, change) - baseline for change in changes]
                    expected = sum(effects) / len(at) if at else math.nan
                    assert found.of(kind, role)[i, layer].item() == pytest.approx(
                        expected, rel=1e-3, abs=1e-4 * baseline, nan_ok=True
                    )
    assert not any(module._forward_hooks for module in lm.model.modules())


def test_every_token_from_the_subject_on_has_a_role(lm: EditableLM, traced: list[Fact]) -> None:
    text = traced_text(lm.tokenizer, traced[1])
    words = lm.tokenizer.convert_ids_to_tokens(text.text.ids)
    assert "".join(words[i] for i in text.subject).replace("Ġ", " ").strip() == "Bruno Keller"
    assert sorted(text.roles) == list(range(text.subject.start, text.text.answer))
    assert text.roles[text.text.answer - 1] == "last"
    assert text.roles[text.subject[-1]] == "subject_last"
    ends_with_it = Fact.from_record({"subject": "Ada Novak", "prompt": "{}", "target": "baker"}, "", "")
    assert "last" not in traced_text(lm.tokenizer, ends_with_it).roles.values()


def same(one: IndirectEffects, other: IndirectEffects, tolerance: float) -> bool:
    names = ("clean", "corrupted", "probability", "log_probability")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return one.facts == other.facts and all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True) for a, b in pairs
    )


def test_noise_belongs_to_a_fact_and_not_to_its_batch(lm: EditableLM, traced: list[Fact]) -> None:
    options = TraceOptions(samples=2, only_known=False)
    whole = trace_effects(lm, traced, options)
    assert same(whole, trace_effects(lm, traced, replace(options, batch_tokens=1)), 1e-6)
    assert same(whole, trace_effects(lm, traced, options), 0)
    assert not same(whole, trace_effects(lm, traced, replace(options, seed=1)), 1e-3)
    assert not same(whole, trace_effects(lm, traced, replace(options, noise=1.0)), 1e-3)


def test_processes_find_what_one_finds(lm: EditableLM, traced: list[Fact], monkeypatch: pytest.MonkeyPatch) -> None:
    options = TraceOptions(samples=2, only_known=False, batch_tokens=20)
    alone = trace_effects(lm, traced, options)
    parts: list[list[Tensor]] = []
    for rank in range(2):
        own: list[Tensor] = []
        monkeypatch.setattr("zu_lightning.runtime.distributed.process", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, own=own: own.append(tensor.clone()))
        trace_effects(lm, traced, options)
        parts.append(own)
    assert len(parts[0]) == 2
    assert all(part.any() for own in parts for part in own)
    sums = iter([a + b for a, b in zip(*parts, strict=True)])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: tensor.copy_(next(sums)))
    assert same(alone, trace_effects(lm, traced, options), 0)


def test_facts_that_the_model_does_not_answer_are_left_out(lm: EditableLM, traced: list[Fact]) -> None:
    found = trace_effects(lm, traced, TraceOptions(samples=1))
    assert (found.facts, found.skipped) == ((), len(traced))
    recommendation = recommend(found)
    assert recommendation.layers == ()
    assert not recommendation.is_sure


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"noise": -1.0}, "noise is -1.0"),
        ({"window": 0}, "window is 0"),
        ({"corruption": "swap"}, "choose one of noise, interchange"),
        ({"window": 4}, "the model has 3 layers"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str, lm: EditableLM, traced: list[Fact]) -> None:
    with pytest.raises(InputError, match=message):
        trace_effects(lm, traced, TraceOptions(**options))


def test_a_fact_without_a_subject_and_one_subject_alone_are_refused(lm: EditableLM, facts: list[Fact]) -> None:
    with pytest.raises(InputError, match="subject is missing"):
        trace_effects(lm, facts)
    with pytest.raises(InputError, match="number of subjects is 1"):
        trace_effects(lm, facts[:1], INTERCHANGED)


def test_the_default_window_grows_with_the_model() -> None:
    assert [TraceOptions().window_for(layers) for layers in (1, 3, 6, 12, 32, 48)] == [1, 1, 1, 2, 6, 10]


@contextmanager
def planted(lm: EditableLM, facts: list[Fact], layer: int) -> Iterator[None]:
    """One MLP alone knows the answers: at a subject's last token it writes the answer, which the next attention moves.

    Other MLPs and attentions write nothing. Answers are in the first half of the width, and embeddings in the second.
    """
    embeddings, head = (
        lm.model.get_input_embeddings().get_parameter("weight"),
        architecture.output_head(lm.model).get_parameter("weight"),
    )
    embeddings[:, :8] = 0
    head[:, 8:] = 0
    head.copy_(10 * head / head.norm(dim=1, keepdim=True))
    texts = [traced_text(lm.tokenizer, fact) for fact in facts]
    keys = torch.stack([output(lm, text.text, lm.model.get_input_embeddings())[text.subject[-1]] for text in texts])
    answers = torch.stack([head[text.text.ids[text.text.answer]] for text in texts])
    mlps, attentions = modules_of(lm, "mlp"), modules_of(lm, "attention")
    for module in (*mlps, *attentions):
        for parameter in module.parameters():
            parameter.zero_()
    mover = attentions[layer + 1]  # attends to all tokens alike
    basis = torch.eye(8, 16)
    mover.get_parameter("v_proj.weight").copy_(basis)
    mover.get_parameter("o_proj.weight").copy_(30 * basis.T.repeat(1, 2))
    lm.layers[layer + 1].get_parameter("input_layernorm.weight").fill_(1.0)
    normed = lm.layers[layer].get_submodule("post_attention_layernorm")(keys)

    def know(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        found = torch.cdist(args[0], normed[None]).min(-1)
        wrote: Tensor = (found.values < 1e-2)[..., None] * answers[found.indices]
        return wrote

    with hooks.hooked(mlps[layer].register_forward_hook(know)):
        yield


@pytest.mark.parametrize("layer", [0, 1])
def test_planted_knowledge_is_found(layer: int) -> None:
    lm = random_lm("llama")
    words = [word[1:] for word in lm.tokenizer.get_vocab() if word.startswith("Ġ") and word[1:].isalpha()]
    names = ("Ada Novak", "Bruno Kellex", "Greta Holz", "Oslo Milq", "Danish Rivey")  # no two end alike
    records = [
        {"subject": name, "prompt": prompt, "target": target}
        for name, target in zip(names, sorted(words, key=len)[-5:], strict=True)
        for prompt in ("{} works as a", "The city of {} is", "In the morning, {} plays")
    ]
    facts = [Fact.from_record(record, "", str(i)) for i, record in enumerate(records)]
    with torch.no_grad(), planted(lm, facts, layer):
        found = trace_effects(lm, facts, INTERCHANGED)
    means = {kind: {role: found.of(kind, role).nanmean(0) for role in ROLES} for kind in KINDS}
    assert (found.clean - found.corrupted).mean() > 0.1
    carried = means["mlp"]["subject_last"]
    assert carried.argmax() == layer
    assert carried[layer] > 0.5 * (found.clean - found.corrupted).mean()
    others = [float(x) for i, x in enumerate(carried) if i != layer]
    assert max(map(abs, others)) < 0.05 * carried[layer]
    assert means["attention"]["last"].argmax() == layer + 1
    recommendation = recommend(found)
    assert recommendation.layers == (layer,)
    assert recommendation.is_sure, recommendation.sentence
