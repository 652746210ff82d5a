"""The rank of the truth, on models whose answers are known."""

import math
from dataclasses import replace

import pytest
import torch

from tests.attacks.conftest import Oracle
from zu_lightning import EditableLM
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.rank import Rank


def test_a_rank_counts_the_answers_that_are_less_likely(base: EditableLM, context: AttackContext) -> None:
    vocabulary = len(base.tokenizer)
    first = {answer: base.tokenizer(f" {answer}")["input_ids"][1] for answer in ("Antwerp", "Cairo", "Madrid", "Tokyo")}
    logits = torch.zeros(vocabulary)
    for place, answer in enumerate(("Tokyo", "Madrid", "Cairo", "Antwerp")):
        logits[first[answer]] = 10.0 * place
    oracle = Oracle(base, lambda ids: logits)
    fact = replace(context.facts[0], target="Madrid", paraphrases=())
    asked = replace(context, facts=[fact], answers=[("Antwerp", "Cairo", "Tokyo")])
    scores = {name: values.item() for name, values in Rank()(oracle, asked).items()}
    assert scores["rank_first"] == 0
    assert scores["rank"] == pytest.approx(1 / 3)
    assert math.isnan(scores["rank_paraphrases"]), "there are no paraphrases"


def test_a_model_that_says_the_same_of_all_ranks_the_truth_by_chance(base: EditableLM, context: AttackContext) -> None:
    oracle = Oracle(base, lambda ids: torch.zeros(len(base.tokenizer)))
    fact = replace(context.facts[0], target="Cairo")
    scores = Rank()(oracle, replace(context, facts=[fact], answers=[("Antwerp", "Madrid", "Tokyo")]))
    assert scores["rank"].item() == pytest.approx(0.5)


def test_chance_is_one_of_as_many_as_there_are_answers(context: AttackContext) -> None:
    asked = replace(context, facts=context.facts[:3], answers=[("Antwerp", "Madrid", "Tokyo"), ("Antwerp",), ()])
    chance = Rank().chance(asked)
    assert chance["rank_first"][:2] == chance["rank_first_paraphrases"][:2] == [1 / 4, 1 / 2]
    assert chance["rank"][:2] == [0.5, 0.5]
    assert all(math.isnan(of_facts[2]) for of_facts in chance.values())


def test_a_fact_without_other_answers_has_no_rank(base: EditableLM, context: AttackContext) -> None:
    scores = Rank()(base, replace(context, answers=[(), *context.answers[1:]]))
    assert scores["rank"].isnan().tolist() == [True, False, False, False]
