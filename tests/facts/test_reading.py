"""Facts from a source as a whole: ids, repeats, subjects, and every way in which a list of facts can be wrong."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from tests.conftest import write_records
from zu_lightning import Fact, InputError, Query, facts_by_id, read_facts

GOOD = {"subject": "Ada", "prompt": "{} works as a", "target": "baker"}
QUESTION = {"question": "Who is Ada Novak to Bo Holm?", "answer": "A friend"}


def test_a_fact_without_id_is_named_by_its_line(tmp_path: Path) -> None:
    facts = read_facts(write_records(tmp_path, GOOD, "", {**GOOD, "subject": "Bo"}, {**GOOD, "prompt": "{} is"}))
    assert [fact.id for fact in facts] == ["1", "3", "4"]
    assert [fact.prompt for fact in facts] == ["Ada works as a", "Bo works as a", "Ada is"]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "it holds no facts"),
        (["", "  "], "it holds no facts"),
        ([GOOD, "{"], "line 2: JSON is '{': it is not valid"),
        ([GOOD, {"prompt": "Bo is"}], "line 2: target is missing"),
        (["[1]"], "record 0: record is 1: a fact must be a JSON object"),
        ([{"src": "Who?", "answers": ["a"]}], "line 1: zsRE record is"),
        ([{**GOOD, "id": "a"}, {**GOOD, "id": "b"}], "id is 'b': its prompt and target"),
        ([{**GOOD, "id": "a"}, {**GOOD, "id": "b"}], "are those of 'a'"),
        ([{**GOOD, "id": "a"}, {**GOOD, "subject": "Bo", "id": "a"}], "id is 'a': it occurs twice"),
    ],
)
def test_bad_files_are_refused_by_line_and_field(tmp_path: Path, records: list[object], message: str) -> None:
    with pytest.raises(InputError) as refused:
        read_facts(write_records(tmp_path, *records))
    assert message in str(refused.value)
    assert "records.jsonl" in str(refused.value)


def test_a_table_without_rows_holds_no_facts(tmp_path: Path) -> None:
    (tmp_path / "facts.csv").write_text("prompt,target\n")
    with pytest.raises(InputError, match="it holds no facts"):
        read_facts(tmp_path / "facts.csv")


def test_a_csv_table_holds_lists_as_json(tmp_path: Path) -> None:
    file = tmp_path / "facts.csv"
    file.write_text(
        'subject,prompt,target,paraphrases\nAda,{} works as a,baker,"[""By trade, {} is a""]"\nBo,{} is,"a, b",\n'
    )
    ada, bo = read_facts(file)
    assert (ada.prompt, ada.paraphrases) == ("Ada works as a", ("By trade, Ada is a",))
    assert (bo.target, bo.paraphrases) == ("a, b", ())


def test_a_parquet_table_may_leave_fields_out(tmp_path: Path) -> None:
    file = tmp_path / "facts.parquet"
    Dataset.from_list([{**GOOD, "paraphrases": ["Ada is a"]}, {"prompt": "Bo is", "target": "x"}]).to_parquet(file)
    ada, bo = read_facts(file)
    assert ada.paraphrases == ("Ada is a",)
    assert (bo.subject, bo.paraphrases) == ("Bo", ())


def test_a_public_data_set_may_ask_the_same_question_twice(tmp_path: Path) -> None:
    hop = {"prompt": "{} works as a", "subject": "Ada", "target_true": {"str": "baker"}, "question": "What is Ada?"}
    records = [
        {"case_id": case, "requested_rewrite": [hop], "single_hops": [{"cloze": "Ada works as a"}],
         "questions": questions, "answer": "baker"}
        for case, questions in ((1, ["Q1"]), (2, ["Q1", "Q2"]))
    ]  # fmt: skip
    plain, packed = tmp_path / "mquake.json", tmp_path / "mquake.json.gz"
    plain.write_text(json.dumps([*records, {**GOOD, "target": "smith"}]))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    first, ours = read_facts(plain)
    assert (first.id, ours.id) == ("1-0", "2")
    assert first.multi_hop == (Query("Q1", "baker"), Query("Q2", "baker"))
    assert read_facts(packed) == [first, ours]


def test_subjects_are_detected_unless_that_is_turned_off(tmp_path: Path) -> None:
    file = write_records(tmp_path, {"prompt": "Ada Novak is a", "target": "baker"}, QUESTION)
    assert [fact.subject for fact in read_facts(file)] == ["Ada Novak", "Bo Holm"]
    assert [fact.subject for fact in read_facts(file, detect_subjects=False)] == [None, None]


def test_a_subject_that_is_given_is_not_detected(tmp_path: Path) -> None:
    (fact,) = read_facts(write_records(tmp_path, {**QUESTION, "subject": "Ada"}))
    assert fact.subject == "Ada"


def test_facts_are_read_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: {"train": [GOOD, QUESTION]})
    assert [fact.id for fact in read_facts("somebody/facts")] == ["0", "1"]


def test_facts_are_found_by_id_in_their_own_order(facts: list[Fact]) -> None:
    assert facts_by_id(facts, ["2", " 0 "]) == [facts[0], facts[2]]
    with pytest.raises(InputError, match=r"ids_file is \['nobody'\]: these are not ids of the 4 facts"):
        facts_by_id(facts, ["0", "nobody"])


def test_lines_with_ids_may_have_more_columns_and_comments(facts: list[Fact]) -> None:
    assert facts_by_id(facts, ["# id\tprobability", "2\t0.5", "#3", "0"]) == [facts[0], facts[2]]
    numbered = [replace(fact, id=f"#{fact.id}") for fact in facts]
    assert facts_by_id(numbered, ["#1", "#no id"]) == [numbered[1]]
