"""Downstream tasks: what their files must hold, and what is asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import DEMO
from zu_lightning import InputError
from zu_lightning.evaluation.ability import TASKS, Question, QuestionSet, read_prose, read_questions

MMLU = {
    "question": " What is 2 + {2}? ",
    "subject": "elementary_mathematics",
    "choices": ["3", "4", "5", "6"],
    "answer": 1,
}
RECORDS: dict[str, dict[str, Any]] = {
    "sst2": {"sentence": "a joy . ", "label": 1, "idx": 7},
    "mmlu": MMLU,
    "mrpc": {"sentence1": "A sat.", "sentence2": "B stood.", "label": 0},
    "cola": {"sentence": "a tall building.", "label": 1},
    "rte": {"sentence1": "Ada sings.", "sentence2": "Ada is mute.", "label": 1},
    "nli": {"sentence1": "Ada sings.", "sentence2": "Somebody sings.", "label": "entailment"},
}
"""One record of each task."""

QUESTIONS = {
    "sst2": Question("a joy .\nQuestion: Is this sentence positive or negative?\nAnswer:", ("negative", "positive"), 1),
    "mmlu": Question(
        "The following are multiple choice questions (with answers) about elementary mathematics.\n\n"
        "What is 2 + {2}?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:",
        ("A", "B", "C", "D"),
        1,
    ),
    "mrpc": Question(
        "Sentence 1: A sat.\nSentence 2: B stood.\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        ("no", "yes"),
        0,
    ),
    "cola": Question("a tall building.\nQuestion: Does this sentence make sense?\nAnswer:", ("no", "yes"), 1),
    "rte": Question("Ada sings.\nQuestion: Ada is mute. True or False?\nAnswer:", ("True", "False"), 1),
    "nli": Question("Ada sings.\nQuestion: Somebody sings. True or False?\nAnswer:", ("True", "False"), 0),
}
"""What it asks."""


def write_task(folder: Path, name: str, *records: object) -> Path:
    """A file of a task."""
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, record in RECORDS.items():
        write_task(tmp_path, name, record)
    return tmp_path


def test_every_task_asks_as_lm_eval_does(folder: Path) -> None:
    found = read_questions(folder)
    assert [asked.name for asked in found] == [task.name for task in TASKS] == list(RECORDS)
    assert {asked.name: asked.questions for asked in found} == {name: (q,) for name, q in QUESTIONS.items()}


def test_tasks_are_those_that_have_a_file_or_are_named(folder: Path) -> None:
    (folder / "nli.jsonl").unlink()
    assert [asked.name for asked in read_questions(folder)] == ["sst2", "mmlu", "mrpc", "cola", "rte"]
    assert [asked.title for asked in read_questions(folder, ["rte", "sst2"])] == ["SST-2", "RTE"]
    with pytest.raises(InputError, match=r"tasks is 'nli': .* has no nli\.jsonl: add it, or leave the task out"):
        read_questions(folder, ["nli"])
    with pytest.raises(InputError, match="tasks is 'glue': there is no such task: choose from sst2, mmlu"):
        read_questions(folder, ["glue"])


def test_the_first_questions_are_taken(tmp_path: Path) -> None:
    write_task(tmp_path, "cola", *({"sentence": str(i), "label": i % 2} for i in range(5)), "not even an object")
    (asked,) = read_questions(tmp_path, limit=3)
    assert [question.prompt[0] for question in asked.questions] == ["0", "1", "2"]
    with pytest.raises(InputError, match="limit is 0: give a positive number"):
        read_questions(tmp_path, limit=0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sst2", {"sentence": None}, "sentence is missing: SST-2 needs sentence, label: give a text"),
        ("sst2", {"sentence": 3}, "sentence is 3: SST-2 needs sentence, label: give a text"),
        ("cola", {"label": -1}, "label is -1: CoLA needs sentence, label: give 0 or 1"),
        ("rte", {"label": None}, "label is missing: RTE needs sentence1, sentence2, label: give 0 or 1"),
        ("rte", {"label": [0]}, r"label is \[0\]: RTE needs"),
        ("nli", {"label": 0}, "label is 0: .*: give 'entailment' or 'not_entailment'"),
        ("mmlu", {"choices": ["a"]}, "choices is .*: MMLU needs subject, question, choices, answer: give a list of 4"),
        ("mmlu", {"answer": "A"}, "answer is 'A': .*: give 0 or 1 or 2 or 3"),
        ("mmlu", {"subject": None}, "subject is missing"),
    ],
)
def test_a_malformed_record_is_refused_by_its_line_and_field(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = write_task(tmp_path, name, RECORDS[name], RECORDS[name] | changes)
    with pytest.raises(InputError, match=message) as error:
        read_questions(tmp_path)
    assert str(error.value).startswith(f"{file}, line 2: ")


def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder is .*: there is no such directory: give one with any of sst2\.jsonl"):
        read_questions(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"folder is .*: no task has a file there: add any of sst2\.jsonl"):
        read_questions(tmp_path)
    write_task(tmp_path, "rte")
    with pytest.raises(InputError, match=r"rte\.jsonl': it is empty"):
        read_questions(tmp_path)
    (tmp_path / "rte.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"rte\.jsonl, line 1: JSON is .* not valid"):
        read_questions(tmp_path)
    write_task(tmp_path, "rte", 3)
    with pytest.raises(InputError, match="line 1: record is 3: give a JSON object with sentence1, sentence2, label"):
        read_questions(tmp_path)


def test_the_majority_is_what_the_most_frequent_answer_gets() -> None:
    asked = QuestionSet("rte", "RTE", tuple(Question("?", ("a", "b"), answer) for answer in (1, 0, 1, 1)))
    assert asked.majority == 75


def test_articles_of_wikitext_are_documents(tmp_path: Path) -> None:
    file = tmp_path / "wiki.txt"
    file.write_text(" \n = Ada = \n \n She sang . \n = = Early life = = \n In Oslo . \n \n = Bo Ek = \n He sat . \n")
    prose = read_prose(str(file))
    assert prose.documents == (" = Ada = \n She sang . \n = = Early life = = \n In Oslo . ", " = Bo Ek = \n He sat . ")
    assert len(read_prose(str(file), 1)) == 1


def test_lines_of_other_text_are_documents() -> None:
    lines = (DEMO / "heldout.txt").read_text().splitlines()
    assert read_prose(str(DEMO / "heldout.txt"), 4).documents == tuple(lines[:4])
    with pytest.raises(InputError, match=r"wikitext is 'nowhere\.txt': text cannot be read from it"):
        read_prose("nowhere.txt")


def test_real_subsets_can_be_read(shared: Path) -> None:
    found = {asked.name: asked for asked in read_questions(shared / "data" / "glue_mmlu", limit=10**6)}
    sizes = {"sst2": 856, "mmlu": 1516, "mrpc": 258, "cola": 644, "rte": 262, "nli": 2489}
    assert {name: len(asked) for name, asked in found.items()} == sizes
    assert all(20 < asked.majority < 80 for asked in found.values())
    assert len(read_prose(str(shared / "data" / "wiki" / "wikitext2_test.txt"))) == 62
