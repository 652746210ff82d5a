"""What is read from projections against hooks made by hand, and what a planted edit looks like."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import DEMO, random
from zu_lightning import EditableLM, Fact, InputError, LoraOptions, Request, RetainText
from zu_lightning.gradient.weights import LoraWeights
from zu_lightning.lm.tokens import tokenize
from zu_lightning.tracing.representations import (
    GROUPS,
    RepresentationMap,
    groups_of,
    projection_outputs,
    representation_map,
)

D = 12


def outputs_by_hand(lm: EditableLM, fact: Fact, layer: int) -> Tensor:
    found: list[Tensor] = []
    hook = lm.projections[layer].register_forward_hook(lambda module, args, output: found.append(output))
    text = tokenize(lm.tokenizer, fact)
    with torch.no_grad():
        lm.model(torch.tensor([text.ids]))
    hook.remove()
    return found[0].view(len(text.ids), -1)[text.lookup].double()


def named(prefix: str, count: int) -> list[Fact]:
    """Facts about as many subjects."""
    records = [{"subject": f"{prefix} {i}", "prompt": "{} is", "target": "here"} for i in range(count)]
    return [Fact.from_record(record, "", f"{prefix}-{i}") for i, record in enumerate(records)]


@pytest.fixture
def groups() -> dict[str, list[Fact]]:
    return {group: named(group, 20) for group in GROUPS}


@pytest.fixture
def before() -> Tensor:
    return random(60, D, seed=1)


def test_outputs_are_those_at_the_lookup_tokens(any_lm: EditableLM, facts: list[Fact]) -> None:
    found = projection_outputs(any_lm, facts, [0, 2])
    assert list(found) == [0, 2]
    for layer, outputs in found.items():
        expected = torch.stack([outputs_by_hand(any_lm, fact, layer) for fact in facts])
        assert torch.allclose(outputs, expected, atol=1e-5 * expected.abs().max().item())


def test_an_adapter_counts_and_its_dropout_does_not(demo_facts: list[Fact]) -> None:
    lm, facts = EditableLM.from_pretrained(DEMO / "model"), demo_facts[:5]
    before = projection_outputs(lm, facts, [1])[1]
    adapter = LoraWeights(lm, [1], LoraOptions(dropout=0.5), seed=0)
    assert torch.allclose(projection_outputs(lm, facts, [1])[1], before)
    for parameter in adapter.learned():
        torch.nn.init.normal_(parameter, std=0.1)
    after = projection_outputs(lm, facts, [1])[1]
    assert torch.equal(projection_outputs(lm, facts, [1])[1], after)
    assert (after - before).norm() > 1e-3 * before.norm()
    assert any(module.training for module in lm.model.modules()), "dropout is back"
    adapter.merge()
    assert torch.allclose(projection_outputs(lm, facts, [1])[1], after, rtol=1e-4, atol=1e-3)


def test_other_facts_about_forgotten_subjects_are_in_no_group() -> None:
    forget, kept, unseen = named("forget", 3), named("kept", 3), named("unseen", 3)
    same = [replace(fact, id=f"same-{fact.id}", prompt=f"{fact.subject} was") for fact in forget]
    request = Request(forget, RetainText([]), protect=[*same[:2], *kept], retain=[*unseen, same[2]])
    assert groups_of(request, 100) == {"forget": forget, "kept": kept, "unseen": unseen}
    assert {group: len(facts) for group, facts in groups_of(request, 2).items()} == dict.fromkeys(GROUPS, 2)
    assert list(groups_of(replace(request, protect=same), 2)) == ["forget", "unseen"]


def test_only_the_group_that_is_moved_has_moved(groups: dict[str, list[Fact]], before: Tensor) -> None:
    after = before.clone()
    after[:20] += 5 * random(D, seed=2)
    (at,) = representation_map(groups, {3: before}, {3: after}).layers
    assert at.layer == 3
    assert at.shifts["forget"].auc == 1.0
    assert (at.shifts["forget"].distance or 0) > 2
    for group in ("kept", "unseen"):
        assert (at.shifts[group].facts, at.shifts[group].distance, at.shifts[group].moved) == (20, 0.0, 0.0)
        assert at.shifts[group].auc == pytest.approx(0.5)
    assert at.pooled.before[20:] == at.pooled.after[20:]
    assert at.pooled.before[:20] != at.pooled.after[:20]


def test_an_edit_that_does_nothing_moves_nothing(groups: dict[str, list[Fact]], before: Tensor) -> None:
    numbers = representation_map(groups, {0: before}, {0: before.clone()}).numbers
    for group in GROUPS:
        assert numbers[f"layer_0/{group}_distance"] == numbers[f"layer_0/{group}_moved"] == 0
        assert numbers[f"layer_0/{group}_auc"] == pytest.approx(0.5)
    assert 0 < numbers["layer_0/explained_2"] <= numbers["layer_0/explained_1"] < 1


def test_the_plane_of_the_base_model_is_that_of_every_method(groups: dict[str, list[Fact]], before: Tensor) -> None:
    told = representation_map(groups, {0: before}, {0: before + 1}).layers[0].base
    shared = torch.cat([before[:20], before[40:]])
    of_shared = {group: groups[group] for group in ("forget", "unseen")}
    not_told = representation_map(of_shared, {0: shared}, {0: 2 * shared}).layers[0].base
    assert told.explained == not_told.explained
    in_both = torch.tensor(told.before[:20] + told.before[40:])
    assert torch.allclose(in_both, torch.tensor(not_told.before), atol=1e-6)
    assert told.after != told.before


def test_a_single_fact_is_drawn_without_numbers() -> None:
    found = representation_map({"forget": named("a", 1)}, {0: torch.zeros(1, D)}, {0: torch.ones(1, D)})
    assert set(found.numbers) == {"layer_0/explained_1", "layer_0/explained_2"}
    assert len(found.layers[0].pooled.after) == 1


def test_what_is_written_can_be_read(groups: dict[str, list[Fact]], before: Tensor, tmp_path: Path) -> None:
    layers = {0: before, 1: before.flip(0)}
    found = representation_map(groups, layers, {layer: states + 1 for layer, states in layers.items()})
    assert found.write(tmp_path).name == "representations.json"
    assert RepresentationMap.read(tmp_path) == found


def test_files_that_are_missing_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder is .*: it holds no representations\.json"):
        RepresentationMap.read(tmp_path)
    (tmp_path / "representations.json").write_text('{"layers": [{"layer": 0}]}')
    with pytest.raises(InputError, match="follows another schema"):
        RepresentationMap.read(tmp_path)
