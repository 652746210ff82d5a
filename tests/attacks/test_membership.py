"""Membership inference on models whose answers are known."""

import math
from dataclasses import replace

import pytest
import torch

from tests.attacks.conftest import Oracle
from zu_lightning import EditableLM, InputError
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.membership import Membership, privleak, reference, statements


def test_a_model_that_knows_tells_facts_from_unknown_subjects(base: EditableLM, context: AttackContext) -> None:
    scores = Membership()(base, context)
    assert list(scores) == ["membership_loss", "membership_min_k", "membership_min_k_plus_plus"]
    assert scores["membership_loss"].tolist() == scores["membership_min_k"].tolist() == [1.0] * 4
    assert scores["membership_min_k_plus_plus"].mean() > 0.8, "a guess about a unknown subject can stand out more"


def test_a_model_that_says_the_same_of_all_tells_nobody_apart(base: EditableLM, context: AttackContext) -> None:
    oracle = Oracle(base, lambda ids: torch.zeros(len(base.tokenizer)))
    assert all(values.tolist() == [0.5] * 4 for values in Membership()(oracle, context).values())


def test_the_score_is_the_share_of_unknown_subjects_that_are_less_familiar(
    base: EditableLM, context: AttackContext
) -> None:
    unknown_subjects = ("Ada Dahl", "Bruno Costa", "Nils Quist", "Ada Costa")
    fact = replace(context.facts[0], target="the")
    asked = replace(context, facts=[fact], answers=[()], unknown_subjects=[unknown_subjects])
    token = base.tokenizer(" the")["input_ids"][-1]
    of_subjects = dict(zip((str(fact.subject), *unknown_subjects), (2.0, 1.0, 3.0, 2.0, 0.0), strict=True))

    def distribution(ids: list[int]) -> torch.Tensor:
        logits = torch.zeros(len(base.tokenizer))
        logits[token] = next(logit for name, logit in of_subjects.items() if name in base.tokenizer.decode(ids))
        return logits

    # Of 1, 3, 2, 0 two are below 2, and one is as high.
    scores = Membership()(Oracle(base, distribution), asked)
    assert scores["membership_loss"].item() == (1 + 0 + 0.5 + 1) / 4
    assert scores["membership_min_k"].item() == (1 + 0 + 0.5 + 1) / 4


def test_the_scores_look_at_the_tokens_of_the_answer_that_they_name(base: EditableLM, context: AttackContext) -> None:
    subject, unknown_subject, answer = str(context.facts[0].subject), "Ada Dahl", "the a the a the"
    fact = replace(context.facts[0], target=answer)
    asked = replace(context, facts=[fact], answers=[()], unknown_subjects=[(unknown_subject,)])
    query = base.tokenizer(fact.query.prompt + " " + answer)["input_ids"]
    start = len(base.tokenizer(fact.query.prompt)["input_ids"])
    assert len(query) - start == 5, "five answer tokens, of which Min-K% looks at two"
    # Logits against a uniform rest: the unknown subject's mean is higher, but so is the mean of the fact's two lowest.
    of_tokens = {subject: (4.0, 2.0, 2.0, 2.0, 2.0), unknown_subject: (9.0, 9.0, 9.0, 0.0, 0.0)}

    def distribution(ids: list[int]) -> torch.Tensor:
        name = subject if subject in base.tokenizer.decode(ids) else unknown_subject
        length = len(base.tokenizer(fact.about(name).prompt)["input_ids"])
        at = len(ids) - length
        logits = torch.zeros(len(base.tokenizer))
        logits[query[start + at]] = of_tokens[name][at]
        return logits

    oracle = Oracle(base, distribution)
    scores = {name: values.item() for name, values in Membership()(oracle, asked).items()}
    # Where all tokens are equally likely, their log-probability has no deviation and is standardized to 0.
    assert scores == {"membership_loss": 0.0, "membership_min_k": 1.0, "membership_min_k_plus_plus": 1.0}
    assert Membership(share=1.0)(oracle, asked)["membership_min_k"].item() == 0.0, "all tokens: the mean"


def test_unknown_subjects_get_answers_of_the_relation_and_all_models_the_same(context: AttackContext) -> None:
    asked = statements(context, 1)
    fact = context.facts[1]
    assert asked[0] == fact.query
    assert [query.prompt for query in asked[1:]] == [fact.about(name).prompt for name in context.unknown_subjects[1]]
    assert {query.target for query in asked[1:]} <= {fact.target, *context.answers[1]}
    assert statements(context, 1) == asked
    many = replace(context, unknown_subjects=[tuple(f"Ada Dahl {i}" for i in range(40))] * 4)
    assert {query.target for query in statements(many, 1)[1:]} == {fact.target, *context.answers[1]}
    assert statements(replace(many, seed=1), 1) != statements(many, 1)


def test_a_fact_without_unknown_subjects_has_no_score(base: EditableLM, context: AttackContext) -> None:
    scores = Membership()(base, replace(context, unknown_subjects=[(), *context.unknown_subjects[1:]]))
    assert scores["membership_loss"].isnan().tolist() == [True, False, False, False]


def test_the_cost_grows_with_the_unknown_subjects(context: AttackContext) -> None:
    alone = Membership().cost(replace(context, unknown_subjects=[()] * 4))
    assert 4 * 2 < alone < Membership().cost(context) < 6 * alone


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_wrong_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"share is .*: give a number above 0, and 1 at most"):
        Membership(share=share)


def test_the_reference_cancels_what_is_likely_for_other_reasons(base: EditableLM, context: AttackContext) -> None:
    # Every name is given the same answer, which the oracle likes less the longer the name.
    asked = replace(context, answers=[()] * 4)
    oracle = Oracle(base, lambda ids: torch.arange(len(base.tokenizer)) * 1e-4 * len(ids))
    own = reference(oracle, asked)
    assert [len(values) for values in own] == [1 + len(context.unknown_subjects[0])] * 4
    scores = Membership(reference=own)(oracle, asked)
    assert scores["membership_reference"].tolist() == [0.5] * 4, "a model like gold gives nothing away"
    less = tuple((values[0] - 1.0, *values[1:]) for values in own)
    assert Membership(reference=less)(oracle, asked)["membership_reference"].tolist() == [1.0] * 4


@pytest.mark.parametrize(("auc", "gold", "expected"), [(0.5, 0.5, 0), (1, 0.5, -100), (0.25, 0.5, 50), (0.7, 0.6, -25)])
def test_privleak_is_the_relative_difference_to_gold(auc: float, gold: float, expected: float) -> None:
    assert privleak(auc, gold) == pytest.approx(expected)


def test_there_is_no_privleak_if_gold_tells_all_apart() -> None:
    assert math.isnan(privleak(0.5, 1.0))
    assert math.isnan(privleak(1.0, 1.0))
