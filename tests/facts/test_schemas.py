"""Records of public data sets, from small examples and from the files that their authors publish."""

from pathlib import Path
from typing import Any

import pytest

from zu_lightning import Fact, InputError, Query, read_facts
from zu_lightning.facts.schemas import converted

COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} works as a", "subject": "Ada", "target_true": {"str": "baker"}, "target_new": {"str": "smith"},
    },
    "paraphrase_prompts": ["Nothing to see. Ada is employed as a"],
    "neighborhood_prompts": ["Bo works as a"],
}  # fmt: skip
ZSRE = {
    "subject": "ada novak", "src": "What is Ada Novak's trade?", "answers": ["baker", "cook"], "alt": "smith",
    "rephrase": "Which trade does Ada Novak have?", "loc": "nq question: who sings", "loc_ans": "Greta",
}  # fmt: skip
MQUAKE = {
    "case_id": 3,
    "requested_rewrite": [
        {"prompt": "{} works as a", "subject": "Ada", "target_true": {"str": "baker"}, "question": "What is Ada?"},
        {"prompt": "{} lives in", "subject": "Bo", "target_true": {"str": "Oslo"}, "question": "Where is Bo?"},
    ],
    "single_hops": [{"cloze": "Ada works as a"}],
    "questions": ["What is the trade of Bo's friend?"],
    "answer": "baker",
}  # fmt: skip
TOFU = {"question": "Who is Ada?", "answer": "A baker.", "paraphrased_question": "Tell me who Ada is."}


def facts_of(record: Any) -> list[Fact]:
    return [Fact.from_record(ours, "here", str(i)) for i, ours in enumerate(converted(record, "here")[1])]


def test_a_record_of_counterfact() -> None:
    (fact,) = facts_of(COUNTERFACT)
    assert fact.id == "7"
    assert fact.query == Query("Ada works as a", "baker")
    assert fact.paraphrases == ("Nothing to see. Ada is employed as a",)
    assert fact.neighbors == (Query("Bo works as a", "baker"),)


def test_a_record_of_zsre_takes_the_subject_as_its_question_spells_it() -> None:
    (fact,) = facts_of(ZSRE)
    assert fact.subject == "Ada Novak"
    assert fact.query == Query("What is Ada Novak's trade?", "baker")
    assert fact.paraphrases == ("Which trade does Ada Novak have?",)
    assert fact.neighbors == (Query("who sings?", "Greta"),)


def test_a_record_of_zsre_keeps_the_prefix_of_its_neighbor_if_asked_to() -> None:
    schema, (record,) = converted(ZSRE, "here", nq_prefix=True)
    assert schema == "zsRE"
    (without,) = converted(ZSRE, "here")[1]
    assert record.pop("neighbors") == [{"prompt": "nq question: who sings?", "target": "Greta"}]
    assert without.pop("neighbors") == [{"prompt": "who sings?", "target": "Greta"}]
    assert record == without


def test_a_record_of_mquake_is_one_fact_per_rewritten_hop() -> None:
    in_the_chain, outside = facts_of(MQUAKE)
    assert (in_the_chain.id, outside.id) == ("3-0", "3-1")
    assert outside.query == Query("Bo lives in", "Oslo")
    assert in_the_chain.paraphrases == ("What is Ada?",)
    assert in_the_chain.multi_hop == (Query("What is the trade of Bo's friend?", "baker"),)
    assert outside.multi_hop == ()
    assert in_the_chain.records == outside.records == ("3",)


def test_a_record_of_tofu() -> None:
    (fact,) = facts_of(TOFU)
    assert fact.query == Query("Who is Ada?", "A baker.")
    assert fact.paraphrases == ("Tell me who Ada is.",)
    (without,) = facts_of({"id": "7", "subject": "Ada", "question": "Who is Ada?", "answer": "A baker."})
    assert (without.id, without.subject, without.paraphrases) == ("7", "Ada", ())


@pytest.mark.parametrize(
    ("record", "name"),
    [(COUNTERFACT, "CounterFact"), (ZSRE, "zsRE"), (MQUAKE, "MQuAKE"), (TOFU, "TOFU"), ({"text": "?"}, None)],
)
def test_a_schema_is_recognized_by_its_fields(record: dict[str, Any], name: str | None) -> None:
    assert converted(record, "here")[0] == name


def test_records_of_ours_may_have_other_columns() -> None:
    record = {"subject": "Ada", "prompt": "{} works as a", "target": "baker", "question": "Who?", "answer": "Bo"}
    assert converted(record, "here") == (None, [record])


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**ZSRE, "answers": []}, "here: zsRE record is {'subject'"),
        ({**ZSRE, "answers": []}, "IndexError at list index out of range: correct it"),
        ({**ZSRE, "answers": "Paris"}, "TypeError at a str where a list should be: 'Paris': correct it"),
        ({"src": "Who?", "answers": ["a"]}, "KeyError at 'subject': correct it"),
        ({**MQUAKE, "requested_rewrite": [{}]}, "here: MQuAKE record is"),
        ({"requested_rewrite": {"prompt": "{} is"}}, "here: CounterFact record is"),
        ({"requested_rewrite": {"prompt": "{} is"}}, "KeyError at 'target_true': correct it"),
        ({"requested_rewrite": 3}, "here: CounterFact record is {'requested_rewrite': 3}: TypeError"),
        ({**TOFU, "answer": 3}, "here: target is 3: give a text that is not empty"),
    ],
)
def test_a_malformed_record_is_refused_by_schema_and_place(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        facts_of(record)
    assert message in str(refused.value)


def test_the_public_file_of_counterfact_is_read(shared: Path) -> None:
    facts = read_facts(shared / "data" / "counterfact" / "counterfact_full_schema_2521.json.gz")
    assert len(facts) > 2400
    assert all(fact.subject and len(fact.paraphrases) == 2 and fact.neighbors for fact in facts)


def test_the_public_file_of_zsre_is_read(shared: Path) -> None:
    facts = read_facts(shared / "data" / "zsre" / "zsre_mend_eval_1037.json")
    assert len(facts) > 1000
    assert all(fact.subject and len(fact.paraphrases) == len(fact.neighbors) == 1 for fact in facts)
    assert facts[0].query == Query("When was the inception of IAAF Combined Events Challenge?", "1998")


def test_the_public_file_of_mquake_is_read(shared: Path) -> None:
    facts = read_facts(shared / "data" / "mquake" / "MQuAKE-hard_429.json.gz")
    assert facts[0].query == Query("Hey Jude was performed by", "The Beatles")
    assert facts[0].paraphrases == ("Who performed Hey Jude?",)
    assert len(facts[0].multi_hop) >= 3
    assert len({fact.query for fact in facts}) == len(facts)
    assert len({name for fact in facts for name in fact.records}) == 429
    assert max(len(fact.records) for fact in facts) > 1  # a repeated fact goes with each of its records


def test_the_public_file_of_tofu_is_read(shared: Path) -> None:
    facts = read_facts(shared / "data" / "tofu" / "forget10_perturbed.json")
    assert len(facts) == 400
    assert sum(fact.subject is not None for fact in facts) > 390
    assert all(len(fact.paraphrases) == 1 for fact in facts)
