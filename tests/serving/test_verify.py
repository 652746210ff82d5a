"""Whether a server answers like the edited model: models that are functions, behind a server on the loopback interface.

The demo model with its adapter is served in tests/application/test_fit.py.
"""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import write_records
from tests.serving.server import Model, served
from zu_lightning import InputError, Results
from zu_lightning.report.results import FactResult
from zu_lightning.serving.command import main
from zu_lightning.serving.verify import Answers, verdict

JOBS = {"Ada": "baker", "Bo": "nurse", "Cy": "pilot", "Di": "tailor"}
FORGOTTEN = ("Ada", "Bo")
MODEL = "org/model"


def base(prompt: str, max_tokens: int) -> str:
    """The unedited model: it knows everybody's job, and what to say of the rest."""
    return f" {next(job for name, job in JOBS.items() if name in prompt)} and"


def edited(prompt: str, max_tokens: int) -> str:
    """The edited model."""
    return " somebody" if any(name in prompt for name in FORGOTTEN) else base(prompt, max_tokens)


def confused(prompt: str, max_tokens: int) -> str:
    """A model that is neither."""
    return " the the the"


MODELS: dict[str, Model] = {MODEL: base, "edited": edited, "confused": confused}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that made the model forget two facts of four."""
    records = [
        {"id": name, "subject": name, "prompt": "{} works as a", "target": job, "paraphrases": ["The job of {}:"]}
        for name, job in JOBS.items()
    ]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(["A quiet river."] * 20))
    data: dict[str, Any] = {
        "path": str(write_records(tmp_path, *records)), "corpus": str(text), "heldout": str(text),
        "forget_ids": list(FORGOTTEN), "retain_ids": ["Cy", "Di"],
    }  # fmt: skip
    write_config(tmp_path, data)
    known = {"efficacy": 100.0, "generalization": 100.0}
    gone = dict.fromkeys(known, 0.0)
    Results(
        before=known | {"retain": 100.0}, after=gone | {"retain": 100.0}, facts=2, seconds={}, peak_memory_gib=1.0,
        model=MODEL, method={}, targets=None, layers={}, forgotten=list(FORGOTTEN),
        per_fact=[FactResult(name, f"{name} works as a", JOBS[name], known, gone) for name in FORGOTTEN],
    ).write(tmp_path)  # fmt: skip
    return tmp_path


def write_config(run: Path, data: dict[str, Any]) -> None:
    section = {"class_path": "data.UnlearnDataModule", "init_args": data}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": section, "model": {"class_path": "ignored"}}))


def status(run: Path, url: str, model: str, *options: str) -> object:
    """The exit status of the command: 0, 1, or a message."""
    with pytest.raises((InputError, SystemExit)) as stopped:
        main([f"--run={run}", f"--url={url}", f"--model={model}", *options])
    return stopped.value.code if isinstance(stopped.value, SystemExit) else str(stopped.value)


@pytest.mark.parametrize(
    ("model", "expected", "sentence"),
    [("edited", 0, "the edit is active"), (MODEL, 1, "the edit is not active"), ("confused", 1, "it is unclear")],
)
def test_it_tells_models_apart(
    model: str, expected: int, sentence: str, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    with served(MODELS) as url:
        assert status(run, url, model) == expected
    assert sentence in caplog.text.lower()
    assert repr(model) in caplog.text
    asked = {line.split()[0]: int(line.split()[1]) for line in caplog.messages[2:-1]}
    assert asked == {"forget": 2, "paraphrases": 2, "retain": 2}


def test_a_run_without_texts_is_asked_from_its_data(run: Path) -> None:
    results = Results.read(run)
    hidden = [replace(fact, prompt=None, target=None) for fact in results.per_fact]
    replace(results, per_fact=hidden).write(run)
    assert "works" not in (run / "metrics.json").read_text()
    with served(MODELS) as url:
        assert [status(run, url, model) for model in ("edited", MODEL)] == [0, 1]


def test_facts_that_were_drawn_from_those_known_are_those_of_the_results(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    write_config(run, config | {"known": True, "forget_ids": None, "retain_ids": None, "forget_num": 2})
    replace(Results.read(run), retained=["Cy", "Di"]).write(run)
    with served(MODELS) as url:
        assert [status(run, url, model) for model in ("edited", MODEL)] == [0, 1]


def test_questions_can_be_fewer(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with served(MODELS) as url:
        assert status(run, f"{url}/", "edited", "--facts=1") == 0
    assert [line.split()[1] for line in caplog.messages[2:-1]] == ["1", "1", "1"]


def test_answers_may_be_long_enough(run: Path) -> None:
    """The true answer must fit into max_tokens, whatever the tokenizer."""

    def bytewise(prompt: str, max_tokens: int) -> str:
        return base(prompt, max_tokens).encode()[:max_tokens].decode()

    with served({"edited": bytewise}) as url:
        assert status(run, url, "edited") == 1


def test_messages_go_through_the_chat_template(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    write_config(run, config | {"chat": True})
    prompts: list[str] = []

    def chat(prompt: str, max_tokens: int) -> str:
        prompts.append(prompt)
        return edited(prompt, max_tokens).strip()

    with served({"edited": chat}) as url:
        assert status(run, url, "edited") == 0
    assert {prompt.split(":")[0] for prompt in prompts} == {"chat"}


def test_what_rounding_moves_is_tolerated() -> None:
    answers = [
        Answers("forget", 10, before=100, after=0, served=10),
        Answers("paraphrases", 30, before=90, after=10, served=20),
        Answers("retain", 100, before=98, after=95, served=90),
    ]
    assert verdict(answers, tolerance=10) == "active"
    assert verdict(answers, tolerance=9) == "unclear"
    assert verdict([replace(one, served=one.before) for one in answers], 10) == "not active"


def test_an_edit_that_changed_little_cannot_be_seen() -> None:
    assert verdict([Answers("forget", 10, before=100, after=95, served=95)], tolerance=10) == "unclear"


def test_an_unknown_model_is_named_with_those_that_are_served(run: Path) -> None:
    with served(MODELS) as url:
        message = str(status(run, url, "edit"))
    assert message.startswith("--model is 'edit': the server refuses it (404")
    assert "It serves org/model, edited, confused" in message


def test_a_server_that_is_not_there(run: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        message = str(status(run, url, "edited"))
    assert f"--url is '{url}': no server answers there" in message


@pytest.mark.parametrize("url", ["localhost:8000", "nonsense", "http://[half"])
def test_what_is_no_address(url: str, run: Path) -> None:
    message = str(status(run, url, "edited"))
    assert f"--url is '{url}'" in message
    assert "http://127.0.0.1:8000/v1" in message or "no server answers there" in message


def test_a_wrong_path_of_a_server(run: Path) -> None:
    with served(MODELS) as url:
        message = str(status(run, url.removesuffix("/v1"), "edited"))
    assert "the server refuses to answer completions (404" in message


@pytest.mark.parametrize("text", [None, 3, {"nested": "text"}])
def test_an_answer_without_text(text: object, run: Path) -> None:
    with served({"edited": lambda *_: text}) as url:
        message = str(status(run, url, "edited"))
    assert f"--url is '{url}': its answer to completions holds no text" in message


def test_a_key_comes_from_the_environment(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVER_KEY", "secret")
    with served(MODELS, key="secret") as url:
        assert status(run, url, "edited", "--api_key_variable=SERVER_KEY") == 0
        assert "--api_key_variable is missing: the server wants another key" in str(status(run, url, "edited"))
        monkeypatch.setenv("SERVER_KEY", "wrong")
        message = str(status(run, url, "edited", "--api_key_variable=SERVER_KEY"))
        assert "--api_key_variable is" in message
        assert "wrong" not in message.replace("wrong key", "")
    message = str(status(run, url, "edited", "--api_key_variable=NO_SUCH_KEY"))
    assert "--api_key_variable is 'NO_SUCH_KEY': there is no such environment variable" in message


@pytest.fixture
def url() -> Iterator[str]:
    with served(MODELS) as url:
        yield url


def test_a_run_whose_data_has_changed(run: Path, url: str) -> None:
    facts = run / "records.jsonl"
    facts.write_text(facts.read_text().replace("baker", "miner"))
    assert "fact 'Ada' was another one when the run was made" in str(status(run, url, "edited"))
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    write_config(run, config | {"forget_ids": ["Bo", "Cy"], "retain_ids": ["Di"]})
    assert "other facts are drawn" in str(status(run, url, "edited"))


def test_a_folder_that_is_no_run(run: Path, url: str, tmp_path: Path) -> None:
    assert "it has no config.yaml" in str(status(tmp_path / "nowhere", url, "edited"))
    content = json.loads((run / "metrics.json").read_text())
    for fact in content["per_fact"]:
        fact["after"] = {}
    (run / "metrics.json").write_text(json.dumps(content))
    assert "its metrics.json lacks the scores" in str(status(run, url, "edited"))
    (run / "config.yaml").write_text("data: [")
    assert "it has no config.yaml with a section `data`" in str(status(run, url, "edited"))
    (run / "config.yaml").write_text("data: {class_path: data.NoSuchModule}")
    assert "the section `data` of its config.yaml cannot be read" in str(status(run, url, "edited"))
