"""Old names work for one release, with a warning that says the new one."""

import importlib
import logging
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import yaml

import zu_lightning
from tests.conftest import ROOT
from zu_lightning import (
    NPO,
    Erase,
    LatentOptions,
    LoraOptions,
    Memit,
    Method,
    TrainingOptions,
    ZeroUnlearn,
    ZeroUnlearnGD,
)
from zu_lightning.renamed_modules import CALLBACKS, MODULES, NAMES, PACKAGES
from zu_lightning.renamed_options import RENAMED, new_option, translate_arguments, translate_config

PAPER = """
  target: word
  optimize_values: true
  latents: {contexts: 6, templates: 0, every_phrasing: false, phrasings_per_step: null, steps: 25}
"""
DEMO = """
model:
  target: reference
  optimize_values: false
  latents: {contexts: 1, templates: 5, examples: 4, every_phrasing: true, phrasings_per_step: 2, steps: 12,
    learning_rate: 0.2, clamp: 1.0, same_subject_weight: 0.5}
data: {protect_num: 1000, protect_same_subject: true}
closed_form: {rule: {class_path: zu_lightning.Erase, init_args: {rounds: 2}}}
"""
GRADIENT = """
closed_form: {rule: null}
model:
  class_path: zu_lightning.GradientModule
  init_args:
    loss: {class_path: zu_lightning.NPO, init_args: {beta: 0.2}}
    weights: lora
    lora: {rank: 4, everywhere: true}
    training: {scale_free: true, learning_rate: 0.01}
"""
LARGE = """
model:
  latents: {scale_free: false, kl_position: lookup}
  objective: {scale_free: false, threshold: 0.01}
  parametrization: dense
  steps: 500
data: {halves: true, nq_prefix: true, ids: known.txt, strangers: names.txt, reading: {corpus_seed: 0}}
closed_form: {rule: null}
"""


def method_of(config: dict[str, Any]) -> Method:
    """The method that a configuration stands for."""
    given = config["method"]
    options = dict(given.get("init_args", {}))
    parts = {"latents": LatentOptions, "lora": LoraOptions, "training": TrainingOptions}
    cls = getattr(zu_lightning, given["class_path"].rpartition(".")[2])
    for name, part in parts.items():
        if name in options:
            options[name] = (
                replace(getattr(cls(), name), **options[name]) if name != "latents" else part(**options[name])
            )
    return cls(**options)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEMO, Erase(reweighting_iterations=2)),
        (f"model: {PAPER}\nclosed_form: {{rule: {{class_path: zu_lightning.Memit}}}}", Memit()),
        (f"model: {PAPER}\nclosed_form: {{rule: zu_lightning.Memit}}", Memit()),
        (f"model: {PAPER}\nclosed_form: {{rule: {{class_path: zu_lightning.ZeroUnlearn}}}}", ZeroUnlearn()),
        (f"model: {PAPER}\n  steps: 30\nclosed_form: {{rule: null}}", ZeroUnlearnGD(solve="descent", steps=30)),
        (GRADIENT, NPO(beta=0.2, weights="lora", lora=LoraOptions(rank=4, all_linear=True))),
    ],
    ids=["erase", "memit", "memit by its name", "zero_unlearn", "descent", "npo"],
)
def test_an_old_file_stands_for_the_same_method(text: str, expected: Method) -> None:
    assert method_of(translate_config(yaml.safe_load(text))) == expected


def test_what_only_the_release_needs_is_in_one_place(caplog: pytest.LogCaptureFixture) -> None:
    found = translate_config(yaml.safe_load(LARGE))
    assert found["release"] == {
        "scale_free_latents": False, "kl_position": "lookup", "parametrization": "dense", "split_halves": True,
        "nq_prefix": True, "corpus_seed": 0,
    }  # fmt: skip
    assert found["data"] == {"ids_file": "known.txt", "unknown_subjects": "names.txt"}
    assert method_of(found) == ZeroUnlearnGD(solve="descent", scale_free=False, threshold=0.01, steps=500)
    assert "data.halves is now release.split_halves" in caplog.text


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_present_file_stays_as_it_is(path: Any) -> None:
    config = yaml.safe_load(path.read_text())
    assert translate_config(config) == config


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--closed_form.rule.retain_weight=0.1"], ["--method.retain_weight=0.1"]),
        (["--closed_form.rule", "zu_lightning.Memit"], ["--method=zu_lightning.Memit"]),
        (
            ["--model=zu_lightning.GradientModule", "--model.loss=NPO", "--model.training.scale_free=true"],
            [
                "--model=zu_lightning.GradientModule",
                "--method=NPO",
                "--method.training.learning_rate=1e-05",
                "--method.training.scale_free=true",
            ],
        ),
        (["--model.loss=SimNPO"], ["--method=SimNPO"]),
        (["--closed_form.rule=null"], ["--method=ZeroUnlearnGD", "--method.solve=descent"]),
        (["--model.init_args.training.epochs", "3"], ["--method.training.epochs=3"]),
        (
            ["fit", "--model.latents.strangers=4", "--trainer.devices=2"],
            ["fit", "--method.latents.unknown_subjects=4", "--trainer.devices=2"],
        ),
        (["--model.tiny=true", "--data.seed", "1"], ["--model.random_tiny_model=true", "--data.seed", "1"]),
    ],
)
def test_an_old_option_is_warned_about_and_taken(
    old: list[str], new: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert translate_arguments(old) == new
    given, present = ({word.partition("=")[0] for word in words if word.startswith("--")} for words in (old, new))
    assert caplog.text.count("is now --") == len(given - present)


def test_no_new_name_is_an_old_one() -> None:
    assert not [new for new in RENAMED.values() if new_option(new)]


@pytest.mark.parametrize(
    ("old", "new"), [*MODULES.items(), *PACKAGES.items(), ("methods.objective", "editing.objective")]
)
def test_an_old_module_is_the_new_one(old: str, new: str) -> None:
    sys.modules.pop(f"zu_lightning.{old}", None)
    with pytest.warns(FutureWarning) as caught:
        found = importlib.import_module(f"zu_lightning.{old}")
    messages = [str(warning.message) for warning in caught]
    assert any(message.startswith(f"zu_lightning.{old} is now zu_lightning.{new};") for message in messages)
    assert found is importlib.import_module(f"zu_lightning.{new}")


@pytest.mark.parametrize(("old", "new"), [*CALLBACKS.items()])
def test_an_old_callback_is_found(old: str, new: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"{old} is now {new};"):
        found = importlib.import_module(old)
    assert found is importlib.import_module(new)


@pytest.mark.parametrize(("old", "new"), [*NAMES.items()])
def test_an_old_public_name_is_the_new_one(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=f"zu_lightning.{old} is now zu_lightning.{new};"):
        found = getattr(zu_lightning, old)
    assert found is getattr(zu_lightning, new)


def test_a_module_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"zu_lightning\.nothing"):
        importlib.import_module("zu_lightning.nothing")


def test_an_old_command_line_runs() -> None:
    arguments = ["fit", "--config=configs/demo.yaml", "--closed_form.rule=zu_lightning.Memit", "--print_config"]
    done = subprocess.run(
        [sys.executable, "train.py", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(done.stdout)["method"]["class_path"] == "zu_lightning.Memit"
    assert "--closed_form.rule is now --method" in done.stderr
