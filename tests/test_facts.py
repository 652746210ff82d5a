"""Reading and splitting facts, and every way in which a file of facts can be wrong."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from datasets import Dataset

from zu_lightning import InputError, read_facts, split_facts
from zu_lightning.facts.fact import Fact, FactToken, Query
from zu_lightning.facts.subjects import detect_subject

GOOD = {"subject": "Ada", "prompt": "{} works as a", "target": "baker"}


def write(path: Path, *records: object) -> Path:
    file = path / "facts.jsonl"
    file.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no facts"),
        (["", "  "], "holds no facts"),
        (["{"], "line 1: not valid JSON"),
        (["1"], "line 1: a fact must be a JSON object"),
        (["[1]"], "record 0: a fact must be a JSON object"),
        (["[1"], "not valid JSON"),
        (["[" * 100_000], "nested too deeply"),
        (['{"prompt": "a", "target": NaN}'], "`target` must be a text that is not empty, but is nan"),
        (['{"prompt": ["a"], "target": "b"}'], "`prompt` must be a text that is not empty"),
        (['{"prompt": "a"\0, "target": "b"}'], "line 1: not valid JSON"),
        ([{**GOOD, "multi_hop": [["q", "a"]]}], "`multi_hop` must be a list of dict"),
        ([{**GOOD, "paraphrases": [1]}], "`paraphrases` must be a list of str"),
        ([{**GOOD, "neighbors": {"prompt": "x"}}], "`neighbors` must be a list of dict"),
        ([{**GOOD, "subject": 3}], "`subject` must be a text"),
        ([{**GOOD, "subject": ""}], "`subject` must be a text"),
        (
            [{"src": "Who?", "answers": [], "subject": "x", "rephrase": "", "loc": "", "loc_ans": ""}],
            "line 1: a zsRE record with IndexError",
        ),
        (
            [{"src": "Who?", "answers": "Paris", "subject": "x", "rephrase": "", "loc": "", "loc_ans": ""}],
            "line 1: a zsRE record with TypeError at a str where a list should be: 'Paris'",
        ),
        ([{**GOOD, "paraphrases": "[1"}], "`paraphrases` is no list in JSON"),
        ([{"src": "Who?", "answers": ["a"]}], "line 1: a zsRE record with KeyError at 'subject'"),
        (
            [{"requested_rewrite": [{}], "single_hops": [], "questions": [], "answer": "a", "case_id": 1}],
            "line 1: a MQuAKE record with KeyError",
        ),
        ([{"question": "Who?", "answer": 3}], "`target` must be a text that is not empty, but is 3"),
        ([{"requested_rewrite": {"prompt": "{} is"}}], "line 1: a CounterFact record with KeyError at 'target_true'"),
        ([{"requested_rewrite": 3}], "line 1: a CounterFact record with TypeError"),
        ([{"target": "baker"}], "line 1: `prompt` is missing"),
        ([GOOD, {"prompt": "Bo is"}], "line 2: `target` is missing"),
        ([{**GOOD, "target": "  "}], "`target` must be a text that is not empty"),
        ([{**GOOD, "target": 7}], "`target` must be a text that is not empty, but is 7"),
        ([{**GOOD, "prompt": ""}], "`prompt` must be a text that is not empty"),
        ([{"prompt": "{} is", "target": "x"}], "holds {} for the subject, but `subject` is missing"),
        ([{**GOOD, "prompt": "Bruno works as a"}], "`subject` 'Ada' does not occur in `prompt`"),
        ([{**GOOD, "paraphrases": "x"}], "`paraphrases` must be a list of str"),
        ([{**GOOD, "neighbors": [{"prompt": "x"}]}], r"neighbors\[0\]: `target` is missing"),
        ([{**GOOD, "id": "a"}, {**GOOD, "id": "b"}], "facts 'a' and 'b' are the same"),
        ([{**GOOD, "id": "a"}, {**GOOD, "subject": "Bo", "id": "a"}], "id 'a' occurs twice"),
    ],
)
def test_bad_files_are_refused_by_line_and_field(tmp_path: Path, records: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_facts(write(tmp_path, *records))


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.path .*nowhere\.jsonl"):
        read_facts(tmp_path / "nowhere.jsonl")


def test_a_byte_order_mark_and_windows_line_ends_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "facts.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert [fact.prompt for fact in read_facts(file)] == ["Ada works as a"]


def test_the_last_place_of_the_subject_counts(tmp_path: Path) -> None:
    (fact,) = read_facts(write(tmp_path, {**GOOD, "prompt": "{}, that is {}, works as a"}))
    assert fact.prompt[: fact.subject_end] == "Ada, that is Ada"


def test_unicode_line_separators_are_text(tmp_path: Path) -> None:
    line = json.dumps({**GOOD, "prompt": "{}\u2028works as a"}, ensure_ascii=False)
    assert read_facts(write(tmp_path, line))[0].prompt == "Ada\u2028works as a"


COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} works as a", "subject": "Ada", "target_true": {"str": "baker"}, "target_new": {"str": "smith"},
    },
    "paraphrase_prompts": ["Nothing to see. Ada is employed as a"],
    "neighborhood_prompts": ["Bo works as a"],
}  # fmt: skip


def test_counterfact_is_read_as_it_is_packed_or_not(tmp_path: Path) -> None:
    records = [COUNTERFACT, {**GOOD, "target": "smith"}, {**COUNTERFACT, "case_id": 8}]
    plain, packed = tmp_path / "counterfact.json", tmp_path / "counterfact.json.gz"
    plain.write_text(json.dumps(records))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    facts = read_facts(plain)
    assert [fact.id for fact in facts] == ["7", "1"]  # the third asks the same question as the first
    assert facts[0].query == Query("Ada works as a", "baker")
    assert facts[0].neighbors == (Query("Bo works as a", "baker"),)
    assert read_facts(packed) == facts


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "facts.json.gz"
    file.write_bytes(gzip.compress(json.dumps([COUNTERFACT]).encode())[:-20])
    with pytest.raises(InputError, match=r"cannot read data\.path .*facts\.json\.gz"):
        read_facts(file)


def test_the_public_file_of_counterfact_is_read(shared: Path) -> None:
    facts = read_facts(shared / "data" / "counterfact" / "counterfact_full_schema_2521.json.gz")
    assert len(facts) > 2400
    assert all(fact.subject and len(fact.paraphrases) == 2 and fact.neighbors for fact in facts)


def test_a_csv_table_holds_lists_as_json(tmp_path: Path) -> None:
    file = tmp_path / "facts.csv"
    file.write_text(
        'subject,prompt,target,paraphrases\nAda,{} works as a,baker,"[""By trade, {} is a""]"\nBo,{} is,"a, b",\n'
    )
    ada, bo = read_facts(file)
    assert (ada.prompt, ada.paraphrases) == ("Ada works as a", ("By trade, Ada is a",))
    assert (bo.target, bo.paraphrases) == ("a, b", ())


def test_a_parquet_table_is_read(tmp_path: Path) -> None:
    file = tmp_path / "facts.parquet"
    Dataset.from_list([{**GOOD, "paraphrases": ["Ada is a"]}, {"prompt": "Bo is", "target": "x"}]).to_parquet(file)
    ada, bo = read_facts(file)
    assert ada.paraphrases == ("Ada is a",)
    assert bo.subject == "Bo"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("facts.csv", b"prompt,target\na,b,c\n", "not as many cells"),
        ("facts.csv", b"prompt,target\na\n", "not as many cells"),
        ("facts.csv", b'prompt,target\n"a,b\n', "not valid CSV"),
        ("facts.csv", b"prompt,target\n", "holds no facts"),
        ("facts.parquet", b"PAR1 and then nothing", "no Parquet file"),
        ("facts.jsonl", b"", "holds no facts"),
        ("facts.jsonl", b'{"prompt": "\xff\xfe", "target": "a"}', "not in UTF-8"),
        ("facts.jsonl.gz", b"no archive", "cannot read data.path"),
        ("facts.jsonl", "{\u00a0}".encode(), "line 1: not valid JSON"),
    ],
)
def test_files_that_are_not_what_they_are_called_are_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_facts(tmp_path / name)


def test_a_folder_is_no_file_of_facts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read data\.path"):
        read_facts(tmp_path)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Who is Jaime Vasquez?", "Jaime Vasquez"),
        ("What were the professions of Aisha Al-Hamad's parents?", "Aisha Al-Hamad"),
        ('Who wrote "The Quiet River" in Oslo?', "The Quiet River"),
        ("In which city does J. K. Rowling live?", "J. K. Rowling"),
        ("Ana de la Cruz was born in", "Ana de la Cruz"),
        ("what is the capital?", None),
        ("Explain quantum tunnelling", None),
        ("In Paris, where did I see it?", "Paris"),
        ("\u0627\u0644\u0639\u0627\u0635\u0645\u0629 \u0647\u064a", None),
    ],
)
def test_subjects_are_detected(prompt: str, subject: str | None) -> None:
    assert detect_subject(prompt) == subject


def test_detection_can_be_left_off(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompt": "Ada Novak is a", "target": "baker"})
    assert read_facts(file)[0].subject == "Ada Novak"
    assert read_facts(file, detect_subjects=False)[0].subject is None


def test_most_subjects_of_zsre_are_detected_as_its_authors_name_them(shared: Path) -> None:
    facts = read_facts(shared / "data" / "zsre" / "zsre_mend_eval_1037.json")
    found = sum(detect_subject(fact.prompt) == fact.subject for fact in facts)
    assert found > 0.8 * len(facts)


def test_public_schemas_are_read(shared: Path) -> None:
    data = shared / "data"
    zsre = read_facts(data / "zsre" / "zsre_mend_eval_1037.json")
    assert len(zsre) > 1000
    assert all(fact.subject and len(fact.paraphrases) == len(fact.neighbors) == 1 for fact in zsre)
    assert zsre[0].query == Query("When was the inception of IAAF Combined Events Challenge?", "1998")
    mquake = read_facts(data / "mquake" / "MQuAKE-hard_429.json.gz")
    assert mquake[0].query == Query("Hey Jude was performed by", "The Beatles")
    assert mquake[0].paraphrases == ("Who performed Hey Jude?",)
    assert len(mquake[0].multi_hop) >= 3
    assert len({fact.query for fact in mquake}) == len(mquake)
    tofu = read_facts(data / "tofu" / "forget10_perturbed.json")
    assert len(tofu) == 400
    assert sum(fact.subject is not None for fact in tofu) > 390
    assert all(len(fact.paraphrases) == 1 for fact in tofu)


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None, *, streaming: bool) -> dict[str, list[dict[str, object]]]:
        asked.append((name, configuration, streaming))
        return {"test": [], "train": [COUNTERFACT]}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert read_facts("somebody/counterfact:all")[0].query == Query("Ada works as a", "baker")
    assert asked == [("somebody/counterfact", "all", True)]


def test_what_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"data\.path 'somebody/facts'.*\(ConnectionError: no route\)"):
        read_facts("somebody/facts")


def test_records_of_ours_may_have_other_columns(tmp_path: Path) -> None:
    (fact,) = read_facts(write(tmp_path, {**GOOD, "question": "Who?", "answer": "Bo"}))
    assert fact.query == Query("Ada works as a", "baker")
    named = {"id": "7", "subject": "Ada", "question": "Who is Ada to Bo Holm?", "answer": "A friend"}
    (fact,) = read_facts(write(tmp_path, named))
    assert (fact.id, fact.subject) == ("7", "Ada")


def test_fact_tokens(facts: list[Fact]) -> None:
    fact = facts[0]
    assert fact.subject
    ends = {choice: replace(fact, fact_token=choice).lookup_end for choice in get_args(FactToken)}
    assert fact.prompt[: ends["subject_last"]].endswith(fact.subject)
    assert fact.prompt[: ends["subject_first"]].endswith(fact.subject[0])
    assert ends["last"] == len(fact.prompt)


def test_halves_keep_from_the_first_and_forget_from_the_second() -> None:
    forget, retain = split_facts(make(20), 5, 10, seed=0, halves=True)
    assert {int(fact.id) for fact in forget} <= set(range(10, 20))
    assert {int(fact.id) for fact in retain} == set(range(10))
    with pytest.raises(InputError, match=r"data.forget_num is 11, but 10 of the 20"):
        split_facts(make(20), 11, 0, seed=0, halves=True)


def make(count: int) -> list[Fact]:
    return [Fact(id=str(i), prompt=f"p{i}", target="t", subject=None, subject_end=2) for i in range(count)]


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    facts = make(50)
    assert split_facts(facts, 5, 10, seed=1) == split_facts(facts, 5, 10, seed=1)
    assert split_facts(facts, 5, 10, seed=1) != split_facts(facts, 5, 10, seed=2)
    assert split_facts(facts, 5, 10, seed=1)[0] == split_facts(facts, 5, 20, seed=1)[0]


def test_forget_and_retain_are_disjoint() -> None:
    forget, retain = split_facts(make(50), 20, 30, seed=0)
    assert len({fact.id for fact in forget + retain}) == 50
    forget, retain = split_facts(make(5), 0, 4, seed=0, forget_ids=["3"])
    assert [fact.id for fact in forget] == ["3"]
    assert sorted(fact.id for fact in retain) == ["0", "1", "2", "4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"forget_num": 0}, "no facts to forget"),
        ({"forget_num": 11}, "data.forget_num is 11, but 10 of the 10 facts"),
        ({"forget_num": 5, "retain_num": 6}, "data.retain_num is 6, but 5 of the 10 facts"),
        ({"forget_ids": ["1", "2"], "retain_ids": ["2"]}, r"\['2'\] are in both data.forget_ids and data.retain_ids"),
        ({"forget_ids": ["x"]}, r"data.forget_ids \['x'\] are not ids"),
    ],
)
def test_impossible_splits_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_facts(make(10), **{"forget_num": 1, "retain_num": 0, "seed": 0, **arguments})  # type: ignore[arg-type]
