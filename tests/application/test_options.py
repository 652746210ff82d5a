"""From options to the library's parameters, and back in messages."""

import ast
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import train
from tests.conftest import ROOT, command_line, train_py
from zu_lightning import InputError
from zu_lightning.cli.known import write_known
from zu_lightning.cli.unlearn_cli import launcher_arguments
from zu_lightning.cli.usage import usage_line
from zu_lightning.serving.command import check


@pytest.mark.parametrize(
    ("parameter", "option"),
    [
        ("forget_num", "--data.forget_num"),
        ("reading.corpus_tokens", "--data.reading.corpus_tokens"),
        ("latents.steps", "--method.latents.steps"),
        ("ZeroUnlearnGD.steps", "--method.steps"),
        ("training.epochs", "--method.training.epochs"),
        ("layers", "--model.layers"),
        ("neutral_target", "--model.neutral_target"),
        ("default_root_dir", "--trainer.default_root_dir"),
        ("accelerator", "--trainer.accelerator"),
        ("target_kind", "--method.target_kind"),
        ("wikitext", "--downstream.wikitext"),
        ("max_adapter_rank", "--trainer.callbacks.max_adapter_rank"),
        ("ckpt_path", "--ckpt_path"),
        ("length of fact 'a'", "length of fact 'a'"),
        ("tokenizer", "tokenizer"),
    ],
)
def test_parameters_of_the_library_become_options(parameter: str, option: str) -> None:
    assert train.APPLICATION.option_of(parameter) == option


NOT_OPTIONS = {
    "model", "data", "downstream", "tokenizer", "source",
    "folder", "JSON", "CSV", "id", "record", "row", "share", "subject",
    "number of subjects", "prompt", "adapters", "base", "head", "ledger", "number",
    *inspect.signature(check).parameters, *inspect.signature(write_known).parameters,
}  # fmt: skip
"""What InputErrors speak of that no option of an unlearning run sets: objects, arguments of functions, fields, and the
options of ``python -m zu_lightning.ledger`` and ``python -m zu_lightning.serving``."""


def parameters_in(path: Path) -> Iterator[str]:
    """What the InputErrors of a file are about, where that is written out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "InputError":
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)


def test_every_parameter_that_an_error_names_is_an_option() -> None:
    folders = ("zu_lightning", "callbacks", "data")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if "comparison" not in path.parts]
    named = {name for path in files for name in parameters_in(path)}
    assert {"layers", "corpus", "target_kind", "ckpt_path"} < named
    assert {name for name in named if not train.APPLICATION.option_of(name).startswith("--")} <= NOT_OPTIONS


def stopped_by(error: Exception, monkeypatch: pytest.MonkeyPatch) -> str:
    """What ``train.py`` says when something raises ``error``."""

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("zu_lightning.cli.command.UnlearnCLI", fail)
    with pytest.raises(SystemExit) as stopped:
        train_py(["fit"])
    return str(stopped.value.code)


def test_an_error_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    error = InputError("forget_num", 12, "ask for fewer.")
    assert str(error) == "forget_num is 12: ask for fewer."
    assert stopped_by(error, monkeypatch) == "train.py: error: --data.forget_num is 12: ask for fewer."


def test_an_error_in_a_file_names_the_field_although_an_option_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    error = InputError("seed", None, "add it.", where="facts.jsonl, line 3")
    assert stopped_by(error, monkeypatch) == "train.py: error: facts.jsonl, line 3: seed is missing: add it."


def test_an_error_of_a_constructor_is_found_in_what_jsonargparse_makes_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapped = ValueError("Does not validate against any of the Union subtypes")
    wrapped.__cause__ = InputError("latents.steps", 0, "give a positive number.")
    assert stopped_by(wrapped, monkeypatch).startswith("train.py: error: --method.latents.steps is 0:")


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("--method.latents.steps=many", "--method.latents.steps is 'many': give an integer."),
        ("--model.layers=[0, x]", """--model.layers is "[0, 'x']": give a list or auto."""),
        ("--model.layers=x", "--model.layers is 'x': give a list or auto."),
        ("--data.draw=some", "--data.draw is 'some': give one of facts, records."),
        ("--attacks.preset=some", "--attacks.preset is 'some': give one of none, quick, full."),
        ("--trainer.max_epochs=x", "--trainer.max_epochs is 'x': give an integer or null."),
        ("--method=Foo", "--method is 'Foo': give one of AlphaEdit, Erase, FineTuning, GradientAscent, "),
        ("--method.retain_weight=x", "--method.retain_weight is 'x': give a number."),
        ("--method.latents.stpes=1", "--method.latents.stpes: there is no such option: "),
        ("--method.latents={a: 1}", "--method.latents.a: there is no such option: "),
        ("--modle=1", "--modle: there is no such option: "),
        ("--config=nowhere.yaml", "--config: File does not exist: '"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    option: str, line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, option))
    assert stopped.value.code == 2
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith(f"train.py: error: {line}")
    assert "\n" not in said
    assert "usage:" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "a command is missing: give one of fit, validate, test, predict, compare, known, ledger, serving."),
        ("forget", "there is no command 'forget': give one of fit, "),
        ("ledger list", "the following arguments are required: list.project"),
        ("ledger list . --x=1", "--x: there is no such option: `python train.py ledger --help` "),
        ("ledger merge . . --requests=x", "--requests is 'x': give a list or null."),
        ("serving --run=. --url=u --model=m --facts=x", "--facts is 'x': give an integer."),
    ],
)
def test_a_wrong_command_is_told_in_one_line(words: str, line: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(words.split())
    assert stopped.value.code == 2
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith(f"train.py: error: {line}")


def test_an_argument_of_a_command_is_not_taken_for_an_option_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"train\.py: error: project is .*: it contains no ledger"):
        train_py(["ledger", "list", str(tmp_path)])


def test_a_wrong_value_in_a_file_is_told_by_its_option(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "wrong.yaml").write_text("method: {init_args: {latents: {clamp: high}}}")
    with pytest.raises(SystemExit):
        train_py(command_line(tmp_path, f"--config={tmp_path / 'wrong.yaml'}"))
    assert "train.py: error: --method.latents.clamp is 'high': give a number." in caplog.text


def test_what_is_not_understood_is_still_one_line() -> None:
    assert usage_line("Something\n  - new\n", train.APPLICATION.option_of, []) == "Something - new"


@pytest.mark.parametrize(("option", "value"), [("accelerator", "abacus"), ("strategy", "x"), ("devices", "9x")])
def test_what_lightning_refuses_is_told_in_one_line(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, f"--trainer.{option}={value}"))
    assert str(stopped.value.code).startswith(f"train.py: error: --trainer.{option} is '{value}': ")
    assert "\n" not in str(stopped.value.code)


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a bug"):
        stopped_by(ValueError("a bug"), monkeypatch)


def test_the_resolved_configuration_can_be_printed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        train_py(command_line(tmp_path, "--model.layers=[1]", "--print_config"))
    assert stopped.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["model"]["class_path"] == "zu_lightning.EditingModule"
    assert printed["model"]["init_args"]["layers"] == [1]
    assert printed["data"]["class_path"] == "data.UnlearnDataModule"
    assert printed["data"]["init_args"]["reading"]["corpus_documents"] == 100_000


@pytest.mark.parametrize(
    ("local", "world", "expected"),
    [
        ("2", "2", {"devices": 2, "num_nodes": 1, "strategy": "ddp"}),
        ("2", "6", {"devices": 2, "num_nodes": 3, "strategy": "ddp"}),
        ("1", "1", {"devices": 1, "num_nodes": 1, "strategy": "auto"}),
    ],
)
def test_a_launcher_decides_the_number_of_processes(
    local: str, world: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert launcher_arguments() == expected


def test_without_a_launcher_options_decide() -> None:
    assert "LOCAL_WORLD_SIZE" not in os.environ
    assert launcher_arguments() == {}
