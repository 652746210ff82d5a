"""The command line, from facts to an edited model, on the demo that ships with the project."""

import contextlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from tests.conftest import DEMO, ROOT, SHORT_RUN, changed_weights, command_line, latest_run, run, train_py
from tests.serving.server import served
from zu_lightning import EditableLM, ExportCheck, Results
from zu_lightning.modules.outputs import LAYOUT
from zu_lightning.report.pictures import pictures_in
from zu_lightning.serving.command import main as verify

PHASES = {
    "load",
    "evaluation",
    "moments",
    "targets",
    "keys_and_values",
    "spectrum",
    "solve",
    "apply",
    "export",
    "completions",
}


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's first command."""
    return run(tmp_path_factory.mktemp("demo"))


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def values(events: EventAccumulator, name: str) -> list[float]:
    return [event.value for event in events.Scalars(name)]


def test_the_demo_forgets_what_it_should_and_nothing_else(demo_run: Path) -> None:
    results = Results.read(demo_run)
    before, after = results.before, results.after
    assert results.method.items() >= {"name": "Erase", "scale_free": True, "reweighting_iterations": 1}.items()
    assert results.facts == len(set(results.forgotten)) == 10
    assert results.targets is not None
    assert results.targets.reachable >= 90
    assert before["efficacy"] >= 95
    assert after["efficacy"] <= 10
    assert after["generalization"] <= 30
    assert after["specificity"] >= before["specificity"] - 5
    assert after["retain"] >= before["retain"] - 5
    assert after["perplexity"] <= 1.1 * before["perplexity"]
    assert after["efficacy_probability"] < 0.1 < before["efficacy_probability"]
    assert set(results.seconds) == PHASES


def test_the_demo_was_sure_and_leaks_no_answers(demo_run: Path) -> None:
    results, text = Results.read(demo_run), (demo_run / "report.html").read_text()
    before, after = results.before, results.after
    assert before["retain_sure"] == before["specificity_sure"] == 100
    assert after["retain_sure"] >= after["retain"] - 5
    assert after["leak_nats"] < 1 < 3 < before["leak_nats"] <= before["leak_nats_worst"]
    for when, scores in (("before", before), ("after", after)):
        by_fact = [getattr(fact, when)["leak_nats"] for fact in results.per_fact]
        assert sum(by_fact) / len(by_fact) == pytest.approx(scores["leak_nats"])
        assert max(by_fact) == scores["leak_nats_worst"]
        assert f"{when}.leak_nats_worst in metrics.json" in text


def test_the_exports_are_the_same_model_and_the_adapter_comes_off(demo_run: Path) -> None:
    assert changed_weights(demo_run) == {"model.layers.0.mlp.down_proj.weight"}
    tokens = torch.arange(3, 43).reshape(2, 20)
    edited = AutoModelForCausalLM.from_pretrained(demo_run / "model")
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model")
    with torch.no_grad():
        expected, original = edited(tokens).logits, base(tokens).logits
        adapted = PeftModel.from_pretrained(base, demo_run / "adapter")
        assert (expected - original).abs().max() > 1e-2
        assert (adapted(tokens).logits - expected).abs().max() < 1e-4
        assert torch.equal(adapted.unload()(tokens).logits, original)


def test_a_server_with_the_adapter_is_told_from_one_without(
    demo_run: Path, demo_lm: EditableLM, caplog: pytest.LogCaptureFixture
) -> None:
    edited = EditableLM.from_pretrained(DEMO / "model")
    PeftModel.from_pretrained(edited.model, demo_run / "adapter")  # in place
    models = {"base": demo_lm.generate, "edited": edited.generate}
    caplog.set_level("INFO")
    with served(models) as url, contextlib.chdir(ROOT):
        for model, status in (("base", 1), ("edited", 0)):
            with pytest.raises(SystemExit) as stopped:
                verify([f"--run={demo_run}", f"--url={url}", f"--model={model}", "--facts=5"])
            assert stopped.value.code == status, caplog.text
    assert "'base' answers like the unedited model" in caplog.text
    assert "'edited' answers like the edited model" in caplog.text


def test_tensorboard_shows_what_was_measured_and_completions(demo_run: Path) -> None:
    events, results = events_of(demo_run), Results.read(demo_run)
    for phase, seconds in results.seconds.items():
        assert values(events, f"seconds/{phase}") == pytest.approx([seconds])
    for name in ("efficacy", "generalization", "specificity", "retain", "perplexity"):
        assert values(events, f"before_after/{name}") == pytest.approx([results.before[name], results.after[name]])
    spectrum = values(events, "spectrum/layer_0")
    assert len(spectrum) > 100
    assert spectrum == sorted(spectrum, reverse=True)
    assert list(results.layers) == [0]
    for name, value in vars(results.layers[0]).items():
        assert values(events, f"layer/{name}") == pytest.approx([value], rel=1e-5)
    assert "completions/text_summary" in events.Tags()["tensors"]


def test_the_dashboard_has_a_layout_pictures_and_a_tab_that_compares_runs(demo_run: Path) -> None:
    events, results = events_of(demo_run), Results.read(demo_run)
    pictures = {f"pictures/{picture.name}" for picture in pictures_in(demo_run)}
    assert {"pictures/scores", "pictures/spectrum_layer_0"} <= pictures == set(events.Tags()["images"])
    assert "custom_scalars__config__" in events.Tags()["tensors"]
    patterns = [tag for charts in LAYOUT.values() for _, tags in charts.values() for tag in tags]
    shown = {tag for tag in events.Tags()["scalars"] if any(re.match(pattern, tag) for pattern in patterns)}
    assert {"before_after/efficacy", "layer/residual_after", "spectrum/layer_0", "train/zero"} <= shown
    for name in ("efficacy", "generalization", "specificity", "retain"):
        assert values(events, f"compared/{name}") == pytest.approx([results.after[name]])
    plugins = {metadata.plugin_data.plugin_name for metadata in events.summary_metadata.values()}
    assert "hparams" in plugins


def test_the_report_is_about_this_run(demo_run: Path) -> None:
    results, text = Results.read(demo_run), (demo_run / "report.html").read_text()
    assert "it can be undone" in text
    assert [fact.id for fact in results.per_fact] == results.forgotten
    assert all(str(fact.prompt) in text and str(fact.target) in text for fact in results.per_fact)
    efficacy = sum(fact.after["efficacy"] for fact in results.per_fact) / results.facts
    assert efficacy == pytest.approx(results.after["efficacy"])
    assert sum(fact.before["probability"] for fact in results.per_fact) / results.facts == pytest.approx(
        results.before["efficacy_probability"]
    )
    for when in ("before", "after"):
        for name, (low, high) in results.intervals[when].items():
            assert low <= getattr(results, when)[name] <= high
    assert results.identity["weights before"] != results.identity["weights after"]
    assert results.started <= results.finished
    assert {one.forget for one in results.completions} == {True, False}


def test_a_report_without_texts_quotes_nothing(demo_run: Path, tmp_path: Path) -> None:
    folder = run(tmp_path, *SHORT_RUN, configs=("demo", "presets/without_texts"))
    results = Results.read(folder)
    (events,) = folder.glob("events.*")
    said = b"".join(path.read_bytes() for path in (folder / "report.html", folder / "metrics.json", events))
    quotes = [str(fact.prompt).encode() for fact in Results.read(demo_run).per_fact]
    assert not [quote for quote in quotes if quote in said]
    assert any(quote in (demo_run / "report.html").read_bytes() for quote in quotes)
    assert results.completions == []
    assert {(fact.prompt, fact.target) for fact in results.per_fact} == {(None, None)}
    assert all(fact.id.encode() in said for fact in results.per_fact)


def test_the_resolved_configuration_is_kept(demo_run: Path) -> None:
    config = yaml.safe_load((demo_run / "config.yaml").read_text())
    assert config["model"]["class_path"] == "zu_lightning.EditingModule"
    assert config["model"]["init_args"]["layers"] == [0]
    assert config["data"]["init_args"]["forget_num"] == 10


def test_layers_are_edited_one_after_the_other(two_layers_run: Path) -> None:
    assert list(Results.read(two_layers_run).layers) == [0, 1]
    assert changed_weights(two_layers_run) == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}


def test_the_same_seed_gives_the_same_weights_twice(two_layers_run: Path, tmp_path: Path) -> None:
    again = run(tmp_path, "--model.layers=[0,1]", *SHORT_RUN)
    exported, before = (folder / "model" / "model.safetensors" for folder in (again, two_layers_run))
    assert exported.read_bytes() == before.read_bytes()
    assert Results.read(again).after == Results.read(two_layers_run).after


def test_scores_after_each_layer_are_there_if_asked_for(two_layers_run: Path, tmp_path: Path) -> None:
    each = run(tmp_path, "--model.layers=[0,1]", "--model.evaluate_layers=true", *SHORT_RUN)
    assert Results.read(each).after == Results.read(two_layers_run).after
    *earlier, last = values(events_of(each), "val/retain_probability")
    assert len(earlier) == 1
    assert values(events_of(two_layers_run), "val/retain_probability") == [last]


@pytest.mark.parametrize(("command", "prefix"), [("validate", "val"), ("test", "test")])
def test_evaluating_the_exported_model_gives_the_scores_after(
    command: str, prefix: str, two_layers_run: Path, tmp_path: Path
) -> None:
    model = f"--model.model_name_or_path={two_layers_run / 'model'}"
    events = events_of(run(tmp_path, model, *SHORT_RUN, command=command))
    after = Results.read(two_layers_run).after
    assert {"efficacy", "retain_probability", "perplexity"} < after.keys()
    for name, score in after.items():
        if name.partition("_probability")[0].endswith("_sure"):
            continue  # nothing says what the model before the edit was sure of
        assert values(events, f"{prefix}/{name}") == pytest.approx([score], rel=1e-4)


def test_a_model_can_be_asked(tmp_path: Path) -> None:
    folder = run(tmp_path, *SHORT_RUN, command="predict")
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    targets = {record["prompt"].replace("{}", record["subject"]): record["target"] for record in demo_records()}
    assert len(predictions) == 2 + 3
    assert all(one["completion"].strip().startswith(targets[one["prompt"]]) for one in predictions)


def demo_records() -> list[dict[str, str]]:
    return [json.loads(line) for line in (DEMO / "facts.jsonl").read_text().splitlines()]


def test_a_trial_run_writes_nothing(tmp_path: Path) -> None:
    train_py(command_line(tmp_path, "--trainer.fast_dev_run=true", *SHORT_RUN))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_scores_are_kept_when_the_export_is_not_the_edited_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ExportCheck(model=float("nan"), adapter=0.0, edit=1.0)
    monkeypatch.setattr("callbacks.export.check_export", lambda *_: found)
    with pytest.raises(RuntimeError, match="what was exported is not the edited model"):
        run(tmp_path, *SHORT_RUN)
    assert Results.read(latest_run(tmp_path)).after["perplexity"] > 1
