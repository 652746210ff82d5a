"""The command line, end to end, on the demo that ships with the project."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, BertConfig

from tests.conftest import DEMO, ROOT
from train import main
from zu_lightning import EditableLM

CONFIGS = ROOT / "configs"
MODELS = ["llama31.yaml", "llama32.yaml", "qwen3.yaml"]
OVERLAYS = sorted(
    path.name for path in CONFIGS.glob("*.yaml") if path.name not in (*MODELS, "demo_pretrain.yaml", "tiny.yaml")
)


SHORT = ("--model.latents.steps=2", "--data.corpus_documents=10")
FEW = ("--data.forget_num=2", "--data.retain_num=5", "--data.corpus_documents=200", "--data.heldout_documents=10")


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def run(tmp_path: Path, command: str, *arguments: str) -> Path:
    """Run the command line in this process; the folder of the run."""
    main([command, "--config", str(CONFIGS / "demo.yaml"), "--trainer.default_root_dir", str(tmp_path), *arguments])
    return tmp_path / "lightning_logs" / "version_0"


def metrics_of(folder: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's first command, once for the tests that look at what it leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run(tmp_path_factory.mktemp("demo"), "fit")


def test_the_demo_forgets_what_it_should_and_nothing_else(demo_run: Path) -> None:
    metrics = metrics_of(demo_run)
    before, after = metrics["before"], metrics["after"]
    assert metrics["facts"] == 10
    assert metrics["targets"]["reachable"] >= 90
    assert before["efficacy"] >= 95
    assert after["efficacy"] <= 10
    assert after["generalization"] <= 30
    assert after["specificity"] >= before["specificity"] - 5
    assert after["retain"] >= before["retain"] - 5
    assert after["perplexity"] <= 1.1 * before["perplexity"]
    assert after["efficacy_probability"] < 0.1 < before["efficacy_probability"]
    assert set(metrics["seconds"]) >= {"load", "moments", "targets", "solve", "evaluation", "export"}


def test_the_exports_are_the_same_model_and_the_adapter_comes_off(demo_run: Path) -> None:
    tokens = torch.arange(3, 43).reshape(2, 20)
    edited = AutoModelForCausalLM.from_pretrained(demo_run / "model")
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model")
    with torch.no_grad():
        expected, original = edited(tokens).logits, base(tokens).logits
        adapted = PeftModel.from_pretrained(base, demo_run / "adapter")
        assert (expected - original).abs().max() > 1e-2
        assert (adapted(tokens).logits - expected).abs().max() < 1e-4
        assert torch.equal(adapted.unload()(tokens).logits, original)


def test_tensorboard_has_figures_before_and_after_and_completions(demo_run: Path) -> None:
    events = EventAccumulator(str(demo_run)).Reload()
    metrics = metrics_of(demo_run)
    for phase, seconds in metrics["seconds"].items():
        assert events.Scalars(f"seconds/{phase}")[0].value == pytest.approx(seconds)
    for name in ("efficacy", "generalization", "specificity", "retain", "perplexity"):
        values = [event.value for event in events.Scalars(f"before_after/{name}")]
        assert values == pytest.approx([metrics["before"][name], metrics["after"][name]])
    spectrum = [event.value for event in events.Scalars("spectrum/layer_0")]
    assert len(spectrum) > 100
    assert spectrum == sorted(spectrum, reverse=True)
    layer = metrics["layers"]["0"]
    assert layer.keys() >= {"relative_norm", "rank", "residual_before", "residual_after", "zero_term_after"}
    for name, value in layer.items():
        assert events.Scalars(f"layer/{name}")[0].value == pytest.approx(value, rel=1e-5)
    assert "completions/text_summary" in events.Tags()["tensors"]


def test_the_resolved_configuration_is_kept(demo_run: Path) -> None:
    config = yaml.safe_load((demo_run / "config.yaml").read_text())
    assert config["model"]["init_args"]["layers"] == [0]
    assert config["data"]["init_args"]["forget_num"] == 10


def test_the_same_seed_gives_the_same_weights_twice(tmp_path: Path, demo_run: Path) -> None:
    again = run(tmp_path, "fit")
    assert (again / "model" / "model.safetensors").read_bytes() == (
        demo_run / "model" / "model.safetensors"
    ).read_bytes()
    assert metrics_of(again)["after"] == metrics_of(demo_run)["after"]


def test_validation_of_the_edited_model_gives_the_figures_after(demo_run: Path, tmp_path: Path) -> None:
    model = str(demo_run / "model")
    run(tmp_path, "validate", "--model.model_name_or_path", model)
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0")).Reload()
    after = metrics_of(demo_run)["after"]
    assert events.Scalars("val/efficacy")[0].value == pytest.approx(after["efficacy"])
    assert events.Scalars("val/perplexity")[0].value == pytest.approx(after["perplexity"], rel=1e-4)


def test_gradient_descent_arrives_at_the_exact_optimum(tmp_path: Path) -> None:
    exact = run(tmp_path / "exact", "fit", "--config", str(CONFIGS / "zero_unlearn_gd.yaml"), *FEW)
    descent = run(tmp_path / "descent", "fit", "--config", str(CONFIGS / "gradient_descent.yaml"), *FEW)
    gaps = [event.value for event in EventAccumulator(str(descent)).Reload().Scalars("train/gap")]
    assert 2 < len(gaps) <= 20
    assert gaps[0] > 1e-2
    assert abs(gaps[-1]) < 1e-10
    relative_norm = [metrics_of(folder)["layers"]["0"]["relative_norm"] for folder in (exact, descent)]
    assert relative_norm[0] == pytest.approx(relative_norm[1], rel=1e-5)


def test_adam_on_a_dense_delta_takes_all_its_steps_and_is_still_far_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense = ("--config", str(CONFIGS / "gradient_descent_paper.yaml"), "--model.steps=30")
    events = EventAccumulator(str(run(tmp_path, "fit", *dense, *FEW))).Reload()
    gaps = [event.value for event in events.Scalars("train/gap")]
    assert len(gaps) == 30
    assert gaps[0] > gaps[-1] > 1e-3
    assert "descent ended" in caplog.text
    assert [event.value for event in events.Scalars("train/step_size")] == pytest.approx([1e-3] * 30)


@pytest.mark.parametrize(
    "threshold", [["--closed_form.rule.threshold=0"], ["--closed_form.rule=null", "--model.objective.threshold=0"]]
)
def test_a_null_space_that_is_empty_is_explained(threshold: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, "fit", *threshold, *FEW)
    assert "ZeroUnlearnGD cannot be solved at layer 0: the null space is empty" in str(stopped.value.code)


def test_layers_are_edited_one_after_the_other(tmp_path: Path) -> None:
    folder = run(tmp_path, "fit", "--model.layers", "[0, 1]", *FEW)
    assert list(metrics_of(folder)["layers"]) == ["0", "1"]
    edited, base = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "model", DEMO / "model"))
    original = base.state_dict()
    changed = {name for name, value in edited.state_dict().items() if not torch.equal(value, original[name])}
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_config_runs(name: str, tmp_path: Path) -> None:
    run(tmp_path, "fit", "--config", str(CONFIGS / name), "--trainer.fast_dev_run", "true", *FEW)


@pytest.mark.parametrize(
    ("name", "overlay"),
    [*((name, None) for name in MODELS), (MODELS[0], "zero_unlearn_gd.yaml"), (MODELS[0], "zero_unlearn.yaml")],
)
def test_every_model_config_runs_on_a_tiny_model(name: str, overlay: str | None, tmp_path: Path) -> None:
    files = [name, "tiny.yaml", *([overlay] if overlay else [])]
    configs = [f"--config={CONFIGS / file}" for file in files]
    main(["fit", *configs, "--trainer.fast_dev_run=true", f"--trainer.default_root_dir={tmp_path}", *SHORT])


def test_a_tiny_model_takes_the_whole_road(tmp_path: Path) -> None:
    configs = [f"--config={CONFIGS / name}" for name in ("qwen3.yaml", "tiny.yaml")]
    main(["fit", *configs, f"--trainer.default_root_dir={tmp_path}", *SHORT])
    folder = tmp_path / "lightning_logs" / "version_0"
    assert list(metrics_of(folder)["layers"]) == ["9", "10", "11"]
    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.model_type == "qwen3"


def test_pretraining_runs(tmp_path: Path) -> None:
    small = ("--model.hidden_size", "48", "--model.intermediate_size", "64", "--data.batch_size", "2")
    config = ("--config", str(CONFIGS / "demo_pretrain.yaml"), "--trainer.default_root_dir", str(tmp_path))
    short = ("--trainer.max_epochs", "1", "--data.steps_per_epoch", "3", "--trainer.precision", "32-true")
    export = [{"class_path": "callbacks.ExportPretrained", "init_args": {"folder": str(tmp_path / "model")}}]
    main(["fit", *config, *small, *short, "--trainer.callbacks", json.dumps(export)])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32
    assert model.config.hidden_size == 48


def test_the_edited_model_can_be_evaluated_and_asked(tmp_path: Path) -> None:
    few = ("--data.forget_num", "2", "--data.retain_num", "3")
    run(tmp_path / "test", "test", *few)
    folder = run(tmp_path / "predict", "predict", *few)
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == 5
    assert all(item["prompt"] and item["completion"] for item in predictions)


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", "configs/demo.yaml", "--print_config"])
    assert stopped.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["layers"] == [0]


def fact_file(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


FACT = {"id": "a", "subject": "Ada Novak", "prompt": "{} works as a", "target": "baker"}


def bad_input(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments and the message they must get."""
    BertConfig(num_hidden_layers=1, architectures=["BertForMaskedLM"]).save_pretrained(tmp_path / "bert")
    shutil.copytree(DEMO / "model", tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "ids").write_text("nobody\n")
    long = {**FACT, "prompt": "very " * 500 + "{} works as a"}

    def facts(name: str, *records: dict[str, Any]) -> list[str]:
        return ["--data.path", fact_file(tmp_path / name, *records), "--data.forget_num=1", "--data.retain_num=0"]

    return {
        "no facts": (facts("none"), "holds no facts"),
        "no prompt": (facts("prompt", {"target": "x"}), "line 1: `prompt` is missing"),
        "no target": (facts("target", {"prompt": "x"}), "line 1: `target` is missing"),
        "subject not in prompt": (facts("subject", {**FACT, "prompt": "Bo is"}), "does not occur in `prompt`"),
        "empty target": (facts("empty target", {**FACT, "target": ""}), "`target` must be a text that is not empty"),
        "duplicates": (facts("twice", FACT, {**FACT, "id": "b"}), "are the same"),
        "both sets": ([*facts("both", FACT), "--data.forget_ids=[a]", "--data.retain_ids=[a]"], "are in both"),
        "prompt too long": (facts("long", long), "but the model's context holds 256"),
        "no such layer": (["--model.layers=[0, 9]"], "layers [9] do not exist, the model has 0..2"),
        "no such model": (["--model.model_name_or_path", str(tmp_path / "none")], "neither a model directory"),
        "empty model": (["--model.model_name_or_path", str(tmp_path / "empty")], "neither a model directory"),
        "no checkpoint": (["--ckpt_path", str(tmp_path / "none.ckpt")], "is no file: name a checkpoint, or `last`"),
        "no architecture": (["--model.tiny=true", "--model.model_name_or_path=mine"], "does not tell its architecture"),
        "no causal model": (["--model.model_name_or_path", str(tmp_path / "bert")], "no causal language model"),
        "broken model": (["--model.model_name_or_path", str(tmp_path / "broken")], "weights or tokenizer cannot be"),
        "no neutral target": (["--model.neutral_target="], "model.neutral_target is empty"),
        "no corpus": (["--data.corpus", str(tmp_path / "nowhere.txt")], "cannot read text from data.corpus"),
        "no tokens": (["--data.corpus_tokens=-1"], "data.corpus_tokens is -1: give a positive number"),
        "no such id": (["--data.ids", str(tmp_path / "ids")], "data.ids names ['nobody']"),
        "unwritable": (["--trainer.default_root_dir", str(tmp_path / "file")], "cannot be written to"),
    }


with tempfile.TemporaryDirectory() as folder:
    BAD_INPUT = sorted(bad_input(Path(folder)))


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_stops_before_any_work(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = bad_input(tmp_path)[case]
    monkeypatch.setattr(EditableLM, "record", lambda *_: pytest.fail("expensive work was begun"))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "run", "fit", *arguments)
    assert message in str(stopped.value.code)


def test_an_error_reaches_the_shell(tmp_path: Path) -> None:
    command = [sys.executable, "train.py", "fit", "--config", "configs/demo.yaml", "--model.layers=[9]"]
    result = subprocess.run([*command, f"--trainer.default_root_dir={tmp_path}"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "train.py: error: model.layers [9]" in result.stderr
    assert "Traceback" not in result.stderr
