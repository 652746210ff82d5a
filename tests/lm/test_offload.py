"""A model spread over main memory and disk is edited, evaluated, and exported like one in a single place."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import TEXTS, random_lm
from zu_lightning import (
    EditableLM,
    Fact,
    LatentOptions,
    Request,
    RetainText,
    ZeroUnlearnGD,
    check_export,
    evaluate,
    evaluation_batches,
    export_adapter,
    export_model,
    unlearn,
)

PLACES = {
    "llama": {
        "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk",
        "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu",
    },
    "gpt2": {
        "transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.h.0": "disk", "transformer.h.1": "cpu",
        "transformer.h.2": "disk", "transformer.ln_f": "cpu", "lm_head": "cpu",
    },
}  # fmt: skip


@pytest.fixture(params=sorted(PLACES))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[EditableLM, EditableLM]:
    """The same model in one place and spread."""
    lm = random_lm(request.param)
    lm.model.save_pretrained(tmp_path / "base")
    lm.tokenizer.save_pretrained(tmp_path / "base")
    spread = EditableLM.from_pretrained(
        tmp_path / "base", device_map=PLACES[request.param], offload_folder=str(tmp_path / "offload")
    )
    return EditableLM.from_pretrained(tmp_path / "base"), spread


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")
def test_a_spread_model_is_edited_evaluated_and_exported_like_any_other(
    pair: tuple[EditableLM, EditableLM], facts: list[Fact], tmp_path: Path
) -> None:
    scores, updates = [], {}
    method = ZeroUnlearnGD(threshold=1.0, latents=LatentOptions(steps=2))
    assert [lm.is_dispatched for lm in pair] == [False, True]
    assert pair[1].projections[2].weight.is_meta
    for lm in pair:
        updates = unlearn(lm, Request(facts, RetainText(TEXTS)), method, [0, 1, 2]).updates
        scores.append(evaluate(lm, evaluation_batches(lm, facts, facts, TEXTS)))
    assert scores[0] == scores[1]
    for layer in range(3):
        whole, spread = (lm.weight(layer) for lm in pair)
        assert torch.equal(whole, spread)
    lm = pair[1]
    model, adapter = export_model(lm, tmp_path / "model"), export_adapter(lm, updates, tmp_path / "adapter")
    reloaded = AutoModelForCausalLM.from_pretrained(model)
    for name, parameter in pair[0].model.state_dict().items():
        assert torch.equal(reloaded.state_dict()[name], parameter), name
    found = check_export(lm, model, adapter, [fact.prompt for fact in facts])
    assert found.edit > 1e-3
    assert found.adapter is not None
    assert max(found.model, found.adapter) < 1e-5


def test_moving_a_spread_model_leaves_it_where_it_is(pair: tuple[EditableLM, EditableLM]) -> None:
    lm = pair[1].to(torch.device("cpu"))
    assert lm.projections[2].weight.is_meta
    assert lm.generate("Ada Novak", 2) == pair[0].generate("Ada Novak", 2)
