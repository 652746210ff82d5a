"""General ability: tasks unrelated to what is forgotten (figure 4 of arXiv 2605.18879).

A task has multiple-choice questions; a model's answer is the choice with the highest probability. Questions come from
the user's own files, one JSON object per line with the fields of GLUE and MMLU. The prompts are those of lm_eval.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from zu_lightning.facts.records import read_records
from zu_lightning.facts.texts import read_texts
from zu_lightning.runtime.errors import InputError, require_positive

WIKITEXT = "wikitext"
"""Name of the perplexity task."""

TITLE = re.compile(r" ?= [^=].* = ?")
"""First line of an article of WikiText; headings within it have more equal signs."""


@dataclass(frozen=True)
class Question:
    """A multiple-choice question.

    Attributes:
        prompt: The prompt, without a trailing space.
        choices: Answers to choose from, each after a space.
        answer: Index of the correct one, from 0.
    """

    prompt: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class Task:
    """How a record becomes a question.

    Attributes:
        name: Its file is ``<name>.jsonl``.
        title: Name in papers.
        template: The prompt, with the names of fields in braces.
        choices: Answers to choose from.
        labels: For each choice, the value of the field ``label`` for which it is correct.
        label: Name of this field.
        texts: Names of the fields that must be texts.
        listed: Name of a field with one text per choice, which the prompt shows, if there is one.
    """

    name: str
    title: str
    template: str
    choices: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[object, ...] = (0, 1)
    label: str = "label"
    listed: str | None = None

    def question(self, record: Any, where: str) -> Question:
        """The question of a record.

        Args:
            record: An object with the fields of this task; others are ignored.
            where: Its file and line, for messages.

        Raises:
            InputError: A field is missing, or is not what it has to be.
        """
        if not isinstance(record, dict):
            raise InputError("record", record, f"give a JSON object with {self.fields}.", where)
        allowed = {name: ("a text", isinstance(record.get(name), str)) for name in self.texts}
        if self.listed is not None:
            number = len(self.choices)
            allowed[self.listed] = f"a list of {number} texts", _is_texts(record.get(self.listed), number)
        allowed[self.label] = " or ".join(map(repr, self.labels)), record.get(self.label) in self.labels
        for name, (form, is_right) in allowed.items():
            if not is_right:
                raise InputError(name, record.get(name), f"{self.title} needs {self.fields}: give {form}.", where)
        # MMLU writes the names of its subjects with underscores.
        shown = {name: record[name].replace("_", " ") if name == "subject" else record[name].strip()
                 for name in self.texts}  # fmt: skip
        shown |= {} if self.listed is None else {self.listed: record[self.listed]}
        return Question(self.template.format(**shown), self.choices, self.labels.index(record[self.label]))

    @property
    def fields(self) -> str:
        """The fields of its records, for messages."""
        return ", ".join([*self.texts, *([] if self.listed is None else [self.listed]), self.label])


ENTAILMENT = "{sentence1}\nQuestion: {sentence2} True or False?\nAnswer:"
PAIR = ("sentence1", "sentence2")

TASKS = (
    Task(
        "sst2", "SST-2", "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:",
        ("negative", "positive"), ("sentence",),
    ),
    Task(
        "mmlu", "MMLU",
        "The following are multiple choice questions (with answers) about {subject}.\n\n{question}\n"
        "A. {choices[0]}\nB. {choices[1]}\nC. {choices[2]}\nD. {choices[3]}\nAnswer:",
        ("A", "B", "C", "D"), ("subject", "question"), (0, 1, 2, 3), "answer", "choices",
    ),
    Task(
        "mrpc", "MRPC",
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\nQuestion: Do both sentences mean the same thing?\nAnswer:",
        ("no", "yes"), PAIR,
    ),
    Task("cola", "CoLA", "{sentence}\nQuestion: Does this sentence make sense?\nAnswer:", ("no", "yes"), ("sentence",)),
    Task("rte", "RTE", ENTAILMENT, ("True", "False"), PAIR),
    Task("nli", "NLI", ENTAILMENT, ("True", "False"), PAIR, ("entailment", "not_entailment")),
)  # fmt: skip
"""The tasks of figure 4. The prompts are those of lm_eval 0.4 (MMLU without examples); ``nli`` has that of ``rte``."""


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a task.

    Attributes:
        name: Of the task.
        title: Name in papers.
        questions: In the order of the file.
    """

    name: str
    title: str
    questions: tuple[Question, ...]
    metric: str = "accuracy"

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def majority(self) -> float:
        """Accuracy, in percent, of always giving the most frequent answer."""
        counts = Counter(question.answer for question in self.questions)
        return 100 * max(counts.values()) / len(self)


@dataclass(frozen=True)
class TextSet:
    """Prose whose perplexity is measured.

    Attributes:
        documents: Each is read on its own.
    """

    documents: tuple[str, ...]
    name: str = WIKITEXT
    title: str = "WikiText"
    metric: str = "word_perplexity"

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def majority(self) -> None:
        """Perplexity has no majority class."""


AbilitySet = QuestionSet | TextSet


def read_questions(folder: str | Path, tasks: Sequence[str] | None = None, limit: int = 200) -> list[QuestionSet]:
    """Read the questions of tasks.

    Args:
        folder: Directory with one file per task, such as ``sst2.jsonl``.
        tasks: Names of tasks; by default all those whose file is in the folder.
        limit: Maximum number of questions of each task: the first ones.

    Returns:
        The questions, in the order of ``TASKS``.

    Raises:
        InputError: The folder or a file does not exist, a name is not that of a task, or a record is malformed.
    """
    require_positive("limit", limit)
    folder, known = Path(folder), [task.name for task in TASKS]
    files = ", ".join(f"{name}.jsonl" for name in known)
    if not folder.is_dir():
        raise InputError("folder", str(folder), f"there is no such directory: give one with any of {files}.")
    for name in tasks or ():
        if name not in known:
            raise InputError("tasks", name, f"there is no such task: choose from {', '.join(known)}.")
        if not (folder / f"{name}.jsonl").is_file():
            remedy = f"{folder} has no {name}.jsonl: add it, or leave the task out."
            raise InputError("tasks", name, remedy)
    named = known if tasks is None else tasks
    chosen = [task for task in TASKS if task.name in named and (folder / f"{task.name}.jsonl").is_file()]
    if not chosen:
        raise InputError("folder", str(folder), f"no task has a file there: add any of {files}.")
    return [_questions_of(task, folder / f"{task.name}.jsonl", limit) for task in chosen]


def read_prose(path: str, limit: int = 200) -> TextSet:
    """Read a text for the perplexity.

    Args:
        path: WikiText as it is distributed, of which each article is a document; or any other text that
            :func:`zu_lightning.facts.texts.read_texts` reads, such as a file with one document per line.
        limit: Maximum number of documents: the first ones.

    Raises:
        InputError: It cannot be read, or holds no text.
    """
    require_positive("limit", limit)
    # The number of lines of the first articles is unknown; WikiText-103 has two million.
    lines = read_texts(path, 10**7, WIKITEXT)
    starts = [i for i, line in enumerate(lines) if TITLE.fullmatch(line)]
    if starts:
        ends = [*starts[1:], len(lines)]
        lines = ["\n".join(lines[start:end]) for start, end in zip(starts, ends, strict=True)]
    return TextSet(tuple(lines[:limit]))


def _questions_of(task: Task, file: Path, limit: int) -> QuestionSet:
    records = islice(read_records(file, "folder"), limit)
    questions = tuple(task.question(record.content, record.where) for record in records)
    if not questions:
        raise InputError("folder", str(file), f"it is empty: give one JSON object per line, with {task.fields}.")
    return QuestionSet(task.name, task.title, questions)


def _is_texts(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(isinstance(text, str) for text in value)
