"""Free continuations: what counts as the answer, and what the draws depend on."""

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from zu_lightning import EditableLM, Fact
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.sampling import Sampling
from zu_lightning.facts.fact import Query
from zu_lightning.facts.texts import mentions
from zu_lightning.lm.architecture import output_head


def test_a_model_that_knows_says_it_and_nothing_else(base: EditableLM, context: AttackContext) -> None:
    facts = [context.facts[0], replace(context.facts[1], target="zither")]
    assert Sampling(samples=3)(base, replace(context, facts=facts))["sampling"].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" Oxford.", True),
        ("It rains in OXFORD", True),
        (" Oxfordshire", False),
        (" New_Oxford", False),
        (" Ox ford", False),
        ("", False),
    ],
)
def test_whole_words_count_in_upper_or_lower_case(text: str, found: bool) -> None:
    assert mentions(text, "Oxford") is found


def test_an_answer_may_begin_and_end_with_any_character() -> None:
    assert mentions("She writes C++.", "C++")
    assert not mentions("She writes C.", "C++")


def test_draws_depend_on_the_fact_and_the_seed_only(lm: EditableLM, facts: list[Fact], context: AttackContext) -> None:
    # A model that knows nothing: of its many words some occur in some draws.
    guesses = [replace(facts[i % 4], id=str(i), target="abcdef"[i]) for i in range(6)]
    asked, attack = replace(context, facts=guesses), Sampling(samples=5, new_tokens=8)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    all_at_once = attack.scores(lm, asked, range(6))["sampling"]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    shares = [attack.scores(lm, asked, range(start, 6, 3))["sampling"] for start in range(3)]
    assert [shares[i % 3][i // 3] for i in range(6)] == all_at_once
    assert {*all_at_once} == {0.0, 1.0}
    query = guesses[0].query
    assert attack.continuations(lm, query, 1) == attack.continuations(lm, query, 1)
    assert attack.continuations(lm, query, 1) != attack.continuations(lm, query, 2)


def test_all_tokens_are_drawn_from_whatever_the_model_prefers(lm: EditableLM) -> None:
    torch.nn.init.zeros_(output_head(lm.model).get_parameter("weight"))  # all of 320 tokens are equally likely
    settings = {"top_k": 1, "top_p": 0.1, "temperature": 0.1, "repetition_penalty": 3.0}
    lm.model.generation_config = GenerationConfig(**settings)  # type: ignore[no-untyped-call]
    drawn = Sampling(samples=2000, new_tokens=1).continuations(lm, Query("Ada", "x"), 0)
    # Bytes that are no text by themselves look alike, so that fewer than 320 texts differ.
    expected = {lm.tokenizer.decode([token], skip_special_tokens=True) for token in range(320)}
    assert len(set(drawn)) > 0.95 * len(expected)


def test_a_longer_answer_has_room(lm: EditableLM) -> None:
    long = "an answer of many more tokens than one"
    few, many = (
        Sampling(samples=1, new_tokens=1).continuations(lm, Query("Ada is", target), 0)[0] for target in ("a", long)
    )
    assert len(many) > len(few)
