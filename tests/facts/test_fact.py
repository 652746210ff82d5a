"""Facts from records, and every way in which a record can be wrong."""

from dataclasses import replace
from typing import Any, get_args

import pytest

from zu_lightning import Fact, FactToken, InputError, Query

GOOD = {"subject": "Ada", "prompt": "{} works as a", "target": "baker"}


def fact_of(record: Any) -> Fact:
    return Fact.from_record(record, "line 1", "7")


def test_the_subject_is_filled_into_prompt_and_paraphrases() -> None:
    paraphrases = ["By trade, {} is a ", "She earns her living as a"]
    fact = fact_of({"subject": "Ada ", "prompt": "{} works as a ", "target": " baker", "paraphrases": paraphrases})
    assert fact.prompt == "Ada works as a"
    assert fact.paraphrases == ("By trade, Ada is a", "She earns her living as a")
    assert fact.query == Query("Ada works as a", "baker")
    assert [query.target for query in fact.paraphrased] == ["baker", "baker"]
    assert fact.id == "7"


@pytest.mark.parametrize("prompt", ["Ada, that is {}, works as a", "Ada, that is Ada, works as a"])
def test_the_last_occurrence_of_the_subject_counts(prompt: str) -> None:
    fact = fact_of({**GOOD, "prompt": prompt})
    assert fact.prompt[: fact.subject_end] == "Ada, that is Ada"


def test_a_prompt_has_one_place_for_its_subject() -> None:
    with pytest.raises(InputError, match=r"^line 1: prompt is '{} is {}': it holds {} more than once"):
        fact_of({**GOOD, "prompt": "{} is {}"})


def test_a_fact_without_subject_ends_with_its_prompt_and_asks_for_no_essence() -> None:
    fact = fact_of({"prompt": "The capital is", "target": "Oslo"})
    assert fact.subject is None
    assert fact.subject_end == fact.lookup_end == len("The capital is")
    assert fact.essence is None


def test_the_essence_asks_what_the_subject_is() -> None:
    essence = fact_of(GOOD).essence
    assert essence
    assert essence.prompt == "Ada is a"
    assert essence.prompt[: essence.lookup_end] == "Ada"


def test_the_fact_token_says_where_the_lookup_token_ends() -> None:
    fact = fact_of({**GOOD, "subject": "Ada Novak", "prompt": "The friend of {} works as a"})
    read = {choice: fact.prompt[: replace(fact, fact_token=choice).lookup_end] for choice in get_args(FactToken)}
    assert read == {
        "subject_last": "The friend of Ada Novak",
        "subject_first": "The friend of A",
        "last": "The friend of Ada Novak works as a",
    }


def test_every_query_of_a_chat_fact_is_a_users_message() -> None:
    queries = [{"prompt": "Bo is a", "target": "smith"}]
    fact = fact_of({**GOOD, "paraphrases": ["By trade, {} is a"], "neighbors": queries, "multi_hop": queries})
    chat = fact.as_chat()
    assert all(query.chat for query in (chat.query, *chat.paraphrased, *chat.neighbors, *chat.multi_hop))
    assert chat.essence
    assert chat.essence.chat
    assert not any(query.chat for query in (fact.query, *fact.paraphrased, *fact.neighbors, *fact.multi_hop))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (1, "line 1: record is 1: a fact must be a JSON object"),
        ({"target": "baker"}, "line 1: prompt is missing"),
        ({"prompt": "Bo is"}, "line 1: target is missing"),
        ({**GOOD, "prompt": ""}, "line 1: prompt is '': give a text that is not empty"),
        ({**GOOD, "prompt": ["a"]}, "line 1: prompt is ['a']: give a text that is not empty"),
        ({**GOOD, "target": "  "}, "line 1: target is '  ': give a text that is not empty"),
        ({**GOOD, "target": 7}, "line 1: target is 7: give a text that is not empty"),
        ({**GOOD, "target": float("nan")}, "line 1: target is nan: give a text that is not empty"),
        ({**GOOD, "subject": 3}, "line 1: subject is 3: give a text"),
        ({**GOOD, "subject": ""}, "line 1: subject is '': give a text"),
        ({"prompt": "{} is", "target": "x"}, "line 1: subject is missing: `prompt` holds {} for the subject"),
        ({**GOOD, "prompt": "Bo works as a"}, "line 1: subject is 'Ada': it does not occur in `prompt` 'Bo works as"),
        ({**GOOD, "paraphrases": "x"}, "line 1: paraphrases is 'x': give a list of str"),
        ({**GOOD, "paraphrases": [1]}, "line 1: paraphrases is [1]: give a list of str"),
        ({**GOOD, "paraphrases": "[1"}, "line 1: paraphrases is '[1': it is not a JSON list"),
        ({**GOOD, "multi_hop": [["q", "a"]]}, "line 1: multi_hop is [['q', 'a']]: give a list of dict"),
        ({**GOOD, "neighbors": {"prompt": "x"}}, "line 1: neighbors is {'prompt': 'x'}: give a list of dict"),
        ({**GOOD, "neighbors": [{"prompt": "x"}]}, "line 1, neighbors[0]: target is missing"),
    ],
)
def test_a_bad_record_is_refused_by_line_and_field(record: object, message: str) -> None:
    with pytest.raises(InputError) as refused:
        fact_of(record)
    assert message in str(refused.value)
