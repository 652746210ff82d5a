"""Causal tracing from the command line, and what it recommends on models whose layers are known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import SHORT_RUN, run
from zu_lightning import EditableLM, Fact, InputError, read_facts, split_facts
from zu_lightning.report.pictures import pictures_in
from zu_lightning.tracing.indirect_effects import TraceOptions, trace_effects
from zu_lightning.tracing.recommendation import recommend


def test_a_validation_traces_and_recommends_the_demos_layer(tmp_path: Path) -> None:
    few = [{"class_path": "callbacks.TraceLayers", "init_args": {"facts": 24, "samples": 2}}]
    options = (*SHORT_RUN, f"--trainer.callbacks={json.dumps(few)}")
    short = [option for option in options if "latents" not in option]
    folder = run(tmp_path, *short, command="validate")
    trace = json.loads((folder / "trace.json").read_text())
    assert len(trace["facts"]) + trace["skipped"] == 24
    assert trace["clean"] > 0.9 > 0.3 > trace["corrupted"]
    mean, low, high = (trace["probability"][name] for name in ("mean", "low", "high"))
    at = trace["roles"].index("subject_last")
    assert low[0][0][at] < mean[0][0][at] < high[0][0][at]
    assert yaml.safe_load((folder / "layers.yaml").read_text()) == {"model": {"layers": [0]}}
    assert trace["recommendation"]["layers"] == [0]
    assert {picture.name for picture in pictures_in(folder)} == {"trace_heat_maps", "trace_by_layer"}
    assert all(f"{len(trace['facts'])} facts" in picture.description for picture in pictures_in(folder))
    assert set(EventAccumulator(str(folder)).Reload().Tags()["images"]) == {
        "pictures/trace_heat_maps",
        "pictures/trace_by_layer",
    }


def shuffled(facts: list[Fact]) -> list[Fact]:
    """Facts with the answers of others."""
    return [replace(fact, target=facts[i - 7].target) for i, fact in enumerate(facts)]


def test_nothing_is_sure_of_shuffled_answers(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    facts = shuffled(split_facts(demo_facts, 20, seed=1)[0])
    recommendation = recommend(trace_effects(demo_lm, facts, TraceOptions(samples=1, only_known=False)))
    assert not recommendation.is_sure
    assert "NOT SURE" in recommendation.sentence


def test_the_layers_of_a_model_that_knows_counterfact_are_found(shared: Path) -> None:
    folder = shared / "models" / "counterfact-llama"
    if not folder.exists():
        pytest.skip(f"no model at {folder}")
    lm, facts = EditableLM.from_pretrained(folder), read_facts(folder / "facts.jsonl")
    found = recommend(trace_effects(lm, split_facts(facts, 24, seed=0)[0], TraceOptions(samples=1)))
    assert {1, 2} <= set(found.layers)


def test_at_least_one_fact_must_be_traced() -> None:
    from callbacks import TraceLayers

    with pytest.raises(InputError, match=r"callbacks.TraceLayers: facts is 0"):
        TraceLayers(facts=0)


def test_a_window_that_is_larger_than_the_model_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    wide = [{"class_path": "callbacks.TraceLayers", "init_args": {"window": 9}}]
    options = (*SHORT_RUN, f"--trainer.callbacks={json.dumps(wide)}")
    with pytest.raises(SystemExit, match="window is 9: the model has 3 layers"):
        run(tmp_path, *[option for option in options if "latents" not in option], command="validate")
    assert not list(tmp_path.rglob("trace.json"))
