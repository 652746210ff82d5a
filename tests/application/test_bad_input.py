"""Bad input is refused before any expensive work, by the name of its option and with a remedy."""

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from tests.conftest import DEMO, ROOT, SHORT_RUN, command_line, train_py
from zu_lightning import EditableLM
from zu_lightning.lm.tokens import Prompt, collate, tokenize

FACT = {"id": "a", "subject": "Ada Novak", "prompt": "{} works as a", "target": "baker"}


class Case(NamedTuple):
    """Options, which may need files that are written when a case is tried, and the message that they must get."""

    options: Callable[[Path], list[str]]
    message: str


def option(*options: str) -> Callable[[Path], list[str]]:
    """Options in which ``{}`` is the folder of the test."""
    return lambda folder: [one.format(folder) for one in options]


def facts(*records: dict[str, Any]) -> Callable[[Path], list[str]]:
    """Options with a file of facts, one of which is to be forgotten."""

    def options(folder: Path) -> list[str]:
        (folder / "facts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return [f"--data.path={folder / 'facts.jsonl'}", "--data.forget_num=1", "--data.retain_num=0"]

    return options


def ids(folder: Path) -> list[str]:
    (folder / "ids").write_text("nobody\n")
    return [f"--data.ids_file={folder / 'ids'}"]


def corpus_about_the_forgotten(folder: Path) -> list[str]:
    (folder / "corpus.txt").write_text("Ada Novak is here.\n")
    return [*facts(FACT)(folder), f"--data.corpus={folder / 'corpus.txt'}"]


def masked_model(folder: Path) -> list[str]:
    BertConfig(num_hidden_layers=1, architectures=["BertForMaskedLM"]).save_pretrained(folder / "bert")
    return [f"--model.model_name_or_path={folder / 'bert'}"]


def broken_model(folder: Path) -> list[str]:
    shutil.copytree(DEMO / "model", folder / "broken", ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "broken" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    return [f"--model.model_name_or_path={folder / 'broken'}"]


def empty_model(folder: Path) -> list[str]:
    (folder / "nothing").mkdir()
    return [f"--model.model_name_or_path={folder / 'nothing'}"]


def model_with(weight: str, value: float) -> Callable[[Path], list[str]]:
    """Options with the demo model, all of one of whose weights are the same."""

    def options(folder: Path) -> list[str]:
        model = shutil.copytree(DEMO / "model", folder / "model")
        tensors = load_file(model / "model.safetensors")
        tensors[weight] = torch.full_like(tensors[weight], value)
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        return [f"--model.model_name_or_path={model}"]

    return options


def unwritable(folder: Path) -> list[str]:
    (folder / "file").touch()
    return [f"--trainer.default_root_dir={folder / 'file'}"]


BAD_INPUT = {
    "no facts": Case(facts(), "--data.path is '{}/facts.jsonl': it holds no facts"),
    "two places for the subject": Case(
        facts({**FACT, "prompt": "{} is {}"}),
        "{}/facts.jsonl, line 1: prompt is '{{}} is {{}}': it holds {{}} more than",
    ),
    "a neutral target that is true": Case(
        option("--model.target=word", "--model.neutral_target= coachman ", "--data.forget_ids=[simon-nagy-profession]"),
        "--model.neutral_target is ' coachman ': it is the true answer of fact 'simon-nagy-profession' (",
    ),
    "weights that are NaN": Case(
        model_with("model.norm.weight", float("nan")),
        "--model.model_name_or_path is '{}/model': its weight model.norm.weight holds NaN or infinite values",
    ),
    "infinite weights": Case(
        model_with("model.layers.2.mlp.down_proj.weight", float("-inf")),
        "--model.model_name_or_path is '{}/model': its weight model.layers.2.mlp.down_proj.weight holds NaN or",
    ),
    "a projection of zeros": Case(
        model_with("model.layers.0.mlp.down_proj.weight", 0.0),
        "--model.layers is [0]: the output projection of layer 0 holds nothing but zeros",
    ),
    "no prompt": Case(facts({"target": "x"}), "{}/facts.jsonl, line 1: prompt is missing"),
    "no target": Case(facts({"prompt": "x"}), "{}/facts.jsonl, line 1: target is missing"),
    "subject not in prompt": Case(facts({**FACT, "prompt": "Bo is"}), "{}/facts.jsonl, line 1: subject is 'Ada Novak'"),
    "empty target": Case(facts({**FACT, "target": ""}), "{}/facts.jsonl, line 1: target is ''"),
    "duplicates": Case(facts(FACT, {**FACT, "id": "b"}), "{}/facts.jsonl: id is 'b': its prompt and target"),
    "prompt too long": Case(
        facts({**FACT, "prompt": "very " * 500 + "{} works as a"}), "the model's context holds 256"
    ),
    "both sets": Case(option("--data.forget_ids=[a]", "--data.retain_ids=[a]"), "--data.retain_ids is ['a']: "),
    "no such id in a file": Case(ids, "--data.ids_file is ['nobody']: these are not ids of the 1800 facts"),
    "no layer of a tiny model": Case(
        option("--model.layers=[]", "--model.random_tiny_model=true"), "--model.layers is []: name at"
    ),
    "no such layer": Case(option("--model.layers=[0, 9]"), "--model.layers is [0, 9]: layers [9] do not exist"),
    "no such model": Case(option("--model.model_name_or_path={}/none"), "--model.model_name_or_path is '{}/none': "),
    "empty model": Case(empty_model, "--model.model_name_or_path is '{}/nothing': this is neither a model directory"),
    "broken model": Case(broken_model, "--model.model_name_or_path is '{}/broken': there is a configuration, but"),
    "no causal model": Case(masked_model, "this 'bert' model is not a causal language model"),
    "no architecture": Case(
        option("--model.random_tiny_model=true", "--model.model_name_or_path=mine"),
        "--model.model_name_or_path is 'mine': it does not contain the name of an architecture",
    ),
    "no such checkpoint": Case(option("--ckpt_path={}/none.ckpt"), "--ckpt_path is '{}/none.ckpt': there is no such"),
    "no neutral target": Case(option("--model.neutral_target="), "--model.neutral_target is '': "),
    "no steps": Case(option("--method=ZeroUnlearnGD", "--method.steps=0"), "--method.steps is 0: give a positive"),
    "no latent steps": Case(option("--method.latents.steps=0"), "--method.latents.steps is 0: give a positive number"),
    "no tokens": Case(option("--data.reading.corpus_tokens=-1"), "--data.reading.corpus_tokens is -1: give a positive"),
    "no corpus": Case(option("--data.corpus={}/nowhere.txt"), "--data.corpus is '{}/nowhere.txt': text cannot be"),
    "no other corpus": Case(corpus_about_the_forgotten, "--data.corpus is '1 documents': every document names"),
    "no chat template": Case(option("--data.chat=true"), "--data.chat is True: the model's tokenizer has no chat"),
    "a negative weight": Case(option("--method.retain_weight=-1"), "--method.retain_weight is -1.0: give zero or"),
    "no language model to edit": Case(
        option("--model=zu_lightning.PretrainModule"), "model is 'PretrainModule': UnlearnDataModule reads data for"
    ),
    "unwritable": Case(unwritable, "--trainer.default_root_dir is '{}/file': it cannot be written to"),
}


@pytest.fixture
def no_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every language model begins with an embedding, whichever way it is run."""
    monkeypatch.setattr(torch.nn.Embedding, "forward", lambda *_: pytest.fail("expensive work was begun"))


@pytest.mark.parametrize("case", BAD_INPUT)
@pytest.mark.usefixtures("no_computing")
def test_bad_input_stops_before_any_work(case: str, tmp_path: Path) -> None:
    options, message = BAD_INPUT[case]
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path / "run", *options(tmp_path)))
    assert message.format(tmp_path) in str(stopped.value.code)
    assert str(stopped.value.code).startswith("train.py: error: ")
    assert not list(tmp_path.glob("run/lightning_logs/*"))


WAYS = {
    "record": lambda lm, batch: lm.record(batch, [lm.layers[0]]),
    "logits": lambda lm, batch: lm.logits(batch, *batch.answer_positions()[:2]),
    "generate": lambda lm, batch: lm.generate("Ada", 1),
    "forward": lambda lm, batch: lm.model(batch.input_ids),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("no_computing")
def test_the_guard_notices_every_way_to_compute(way: str, lm: EditableLM) -> None:
    batch = collate([tokenize(lm.tokenizer, Prompt("Ada works as a", "baker"))], lm.tokenizer)
    with pytest.raises(pytest.fail.Exception, match="expensive work was begun"):
        WAYS[way](lm, batch)


@pytest.mark.usefixtures("no_computing")
def test_good_input_does_begin_to_work(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="expensive work was begun"):
        train_py(command_line(tmp_path, *SHORT_RUN))


@pytest.mark.parametrize(
    "threshold",
    [
        ["--method=ZeroUnlearnGD", "--method.threshold=0"],
        ["--method=ZeroUnlearnGD", "--method.solve=descent", "--method.threshold=0"],
    ],
)
def test_an_empty_null_space_is_explained(threshold: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, *threshold, *SHORT_RUN))
    assert re.search(
        r"error: --method\.threshold is 0\.0: layer 0 has no solution: the null space is empty: .*raise the",
        str(stopped.value.code),
    )


def test_an_error_is_all_that_the_shell_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python prints such an exit to the standard error, without a traceback, and returns 1."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["train.py", *command_line(tmp_path, "--model.layers=[9]")])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path("train.py", run_name="__main__")
    assert str(stopped.value.code).startswith("train.py: error: --model.layers is [9]: layers [9] do not exist")
