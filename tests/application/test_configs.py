"""Every configuration that ships does what its name says, and leaves a model, an adapter, and a report."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

import train
from tests.conftest import ROOT, SHORT_RUN, changed_weights, run
from zu_lightning import Results

Configs = tuple[str, ...]

RELEASE_WEIGHTS: dict[str, object] = {
    "name": "ZeroUnlearn", "scale_free": False, "retain_weight": 15000.0, "forget_weight": 50.0, "ridge": 1.0,
}  # fmt: skip
DESCENT: dict[str, object] = {"name": "ZeroUnlearnGD", "solve": "descent"}
METHODS: dict[Configs, dict[str, object]] = {
    ("demo_gd",): DESCENT,
    ("demo", "methods/alphaedit"): {"name": "AlphaEdit"},
    ("demo", "methods/erase"): {"name": "Erase", "reweighting_iterations": 1},
    ("demo", "methods/gradient_descent"): DESCENT,
    ("demo", "methods/gradient_descent_release"): DESCENT,
    ("demo", "methods/memit"): {"name": "Memit"},
    ("demo", "methods/release_weights"): RELEASE_WEIGHTS,
    ("demo", "methods/rome"): {"name": "Rome"},
    ("demo", "methods/zero_unlearn"): {"name": "ZeroUnlearn", "scale_free": True},
    ("demo", "methods/zero_unlearn_gd"): {"name": "ZeroUnlearnGD"},
    ("demo", "methods/zero_unlearn_soft"): {"name": "ZeroUnlearnSoft"},
    ("demo", "presets/fast"): {"name": "Erase", "reweighting_iterations": 0, "mean_over_facts": False},
    ("demo", "presets/profile"): {"name": "Erase"},
    ("demo", "presets/representations"): {"name": "Erase"},
}
"""Configurations on the demo, and the method that must run; ``test_fit.py`` runs the demo itself."""

FEW_STEPS: dict[Configs, list[str]] = {("demo", "methods/gradient_descent_release"): ["--method.steps=2"]}

LOSSES = {
    "fine_tuning": "FineTuning",
    "gradient_ascent": "GradientAscent",
    "gradient_difference": "GradientDifference",
    "npo": "NPO",
    "npo_lora": "NPO",
    "rmu": "RMU",
    "simnpo": "SimNPO",
}
"""Gradient methods, with the loss that they must minimize; ``tests/modules`` trains with each."""

METHOD_FILES = sorted(path.stem for path in (ROOT / "configs" / "methods").glob("*.yaml"))
GRADIENT_METHODS = [name for name in METHOD_FILES if name.removesuffix("_release") in LOSSES]

MODELS = {"llama31": ("llama", [19, 20, 21]), "llama32": ("llama", [16, 17, 18]), "qwen3": ("qwen3", [9, 10, 11])}
"""Configurations of large models, with the architecture and the layers to edit."""

TINY_RUN = (
    "--method.latents.steps=2", "--data.forget_num=1", "--data.retain_num=0",
    "--data.reading.corpus_documents=10", "--data.reading.heldout_documents=1",
)  # fmt: skip

ON_TINY_MODELS: tuple[tuple[str, Configs, dict[str, object]], ...] = (
    ("llama31", (), DESCENT),
    ("llama32", (), DESCENT),
    ("qwen3", (), DESCENT),
    ("llama31", ("data/counterfact", "methods/zero_unlearn_gd"), {"name": "ZeroUnlearnGD", "scale_free": True}),
    ("llama31", ("protocols/release_few", "data/zsre"), RELEASE_WEIGHTS),
    ("llama32", ("protocols/release_many", "data/mquake"), DESCENT),
    ("qwen3", ("methods/npo", "data/tofu"), {"name": "NPO"}),
)
"""Configurations of large models, what follows them, and the method that must run."""

ELSEWHERE = {
    "smollm2",
    "tiny",
    "demo_pretrain",
    "demo_gold",
    "teach",
    "taught",
    "presets/downstream",
    "presets/trace",
    "presets/without_texts",
}
"""Configurations that other tests run."""

MethodRun = Callable[[Configs], Path]


@pytest.fixture(scope="module")
def method_run(tmp_path_factory: pytest.TempPathFactory) -> MethodRun:
    """The folder of a small run with some configurations; each is run once, and all have one cache of moments."""
    root, folders = tmp_path_factory.mktemp("methods"), dict[Configs, Path]()

    def folder_of(configs: Configs) -> Path:
        if configs not in folders:
            folders[configs] = run(root, *SHORT_RUN, *FEW_STEPS.get(configs, []), configs=configs)
        return folders[configs]

    return folder_of


def gaps_of(folder: Path) -> list[float]:
    """The optimality gap at each step of gradient descent."""
    return [event.value for event in EventAccumulator(str(folder)).Reload().Scalars("train/gap")]


def test_no_configuration_is_left_out() -> None:
    files = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").rglob("*.yaml")}
    tested = {name for configs in METHODS for name in configs} | set(MODELS)
    overlays = {name for _, names, _ in ON_TINY_MODELS for name in names}
    contents = {name: yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text()) for name in files}
    comparisons = {name for name, content in contents.items() if {"methods", "like"} & content.keys()}
    losses = {f"methods/{name}" for name in GRADIENT_METHODS}
    assert {name.removesuffix("_release") for name in GRADIENT_METHODS} == LOSSES.keys()
    assert files == tested | overlays | comparisons | losses | ELSEWHERE


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_the_configuration_of_a_gradient_method_can_be_read(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = ("--config=configs/demo.yaml", f"--config=configs/methods/{name}.yaml")
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *configs, "--print_config"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert not ended.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"] == "zu_lightning.GradientModule"
    assert config["method"]["class_path"].endswith(f".{LOSSES[name.removesuffix('_release')]}")
    assert config["method"]["init_args"]["training"]["scale_free"] != name.endswith("_release")


@pytest.mark.parametrize("configs", METHODS, ids=lambda configs: configs[-1])
def test_a_configuration_runs_its_method(configs: Configs, method_run: MethodRun) -> None:
    folder = method_run(configs)
    results = Results.read(folder)
    assert {name: results.method[name] for name in METHODS[configs]} == METHODS[configs]
    assert changed_weights(folder) == {"model.layers.0.mlp.down_proj.weight"}
    assert list(results.layers) == [0]
    assert results.layers[0].relative_norm > 0
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert results.before["efficacy"] == 100
    assert results.after.keys() == results.before.keys()
    assert results.after != results.before


def test_gradient_descent_arrives_at_the_exact_optimum(method_run: MethodRun) -> None:
    folders = [method_run(("demo", f"methods/{name}")) for name in ("zero_unlearn_gd", "gradient_descent")]
    gaps = gaps_of(folders[1])
    assert 2 < len(gaps) <= 20
    assert gaps[0] > 1e-2
    assert abs(gaps[-1]) < 1e-10
    exact, descent = (Results.read(folder).layers[0].relative_norm for folder in folders)
    assert descent == pytest.approx(exact, rel=1e-5)


def test_the_demo_of_gradient_descent_is_the_demo_with_its_overlay(method_run: MethodRun) -> None:
    results = [Results.read(method_run(configs)) for configs in (("demo_gd",), ("demo", "methods/gradient_descent"))]
    assert results[0].after == results[1].after


def test_adam_on_a_dense_delta_takes_all_its_steps_and_is_still_far_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dense = ("demo", "methods/gradient_descent_release")
    folder = run(tmp_path, "--method.steps=10", *SHORT_RUN, configs=dense)
    gaps = gaps_of(folder)
    assert len(gaps) == 10
    assert gaps[0] > gaps[-1] > 1e-3
    assert "descent ended" in caplog.text
    steps = EventAccumulator(str(folder)).Reload().Scalars("train/step_size")
    assert [event.value for event in steps] == pytest.approx([1e-3] * 10)


def test_a_profile_is_written(method_run: MethodRun) -> None:
    assert "cumulative time" in (method_run(("demo", "presets/profile")) / "fit-profile.txt").read_text()


@pytest.mark.parametrize(
    ("name", "overlays", "method"), ON_TINY_MODELS, ids=[f"{name}: {', '.join(o)}" for name, o, _ in ON_TINY_MODELS]
)
def test_a_configuration_of_a_large_model_runs_on_a_tiny_one(
    name: str, overlays: Configs, method: dict[str, object], tmp_path: Path
) -> None:
    architecture, layers = MODELS[name]
    edits_layers = method["name"] != "NPO"
    low = ["--model.layers=[1]"] if overlays else []  # a tiny model is as deep as it must be
    few = ["--method.steps=2"] if "protocols/release_many" in overlays else []
    epochs = [] if edits_layers else ["--method.training.epochs=1"]
    options = [option for option in TINY_RUN if edits_layers or "latents" not in option]
    folder = run(tmp_path, *options, *low, *few, *epochs, configs=(name, *overlays, "tiny"))
    results = Results.read(folder)
    assert {name: results.method[name] for name in method} == method
    assert list(results.layers) == (([1] if overlays else layers) if edits_layers else [])
    assert all(scores.relative_norm > 0 for scores in results.layers.values())
    assert "tiny random stand-in" in results.model
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert model.config.model_type == architecture
    assert model.dtype == (torch.float32 if any("release" in name for name in overlays) else torch.bfloat16)
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    used = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]
    assert used["neutral_target"] == ("I don't know." if "data/tofu" in overlays else "<eos>")


@pytest.mark.parametrize("name", ["demo_pretrain", "demo_gold"])
def test_pretraining_writes_a_model_that_can_be_loaded(name: str, tmp_path: Path) -> None:
    small = ("--model.hidden_size=48", "--model.intermediate_size=64", "--data.batch_size=2")
    short = ("--trainer.max_epochs=1", "--data.steps_per_epoch=3", "--trainer.precision=32-true")
    export = [{"class_path": "callbacks.ExportPretrained", "init_args": {"folder": str(tmp_path / "model")}}]
    callbacks = f"--trainer.callbacks={json.dumps(export)}"
    folder = run(tmp_path, *small, *short, callbacks, configs=(name,))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.dtype == torch.float32
    assert model.config.hidden_size == 48
    assert EventAccumulator(str(folder)).Reload().Scalars("val/loss")


@pytest.mark.parametrize("name", METHOD_FILES)
def test_an_overlay_says_only_what_its_method_sets(name: str) -> None:
    text = (ROOT / "configs" / "methods" / f"{name}.yaml").read_text()
    assert len(text.splitlines()) <= 5
    assert yaml.safe_load(text).keys() <= {"method", "release"}


def test_what_the_release_needs_stays_whatever_the_method(tmp_path: Path) -> None:
    folder = run(
        tmp_path,
        *TINY_RUN,
        "--model.layers=[1]",
        "--method=Memit",
        configs=("llama31", "protocols/release_few", "tiny"),
    )
    found = Results.read(folder).method
    assert (found["name"], found["scale_free"]) == ("Memit", True)
    assert isinstance(found["release"], dict)
    assert (found["release"]["kl_position"], found["release"]["slack"]) == ("lookup", 0.01)
