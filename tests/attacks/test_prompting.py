"""Other ways to ask, on models that answer to some of them."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.attacks.conftest import Oracle
from zu_lightning import EditableLM, Fact
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.prompting import FewShot, Prefix, Repeat, Reversed, sentences

KEPT = [("Ada", "Madrid"), ("Bruno", "Cairo"), ("Cleo", "Tokyo"), ("Dan", "Athens")]


def home(subject: str, target: str) -> Fact:
    return Fact.from_record({"subject": subject, "prompt": "The home of {} is in", "target": target}, "", subject)


@pytest.fixture
def cairo(context: AttackContext) -> AttackContext:
    """One fact, whose answer is one token; another person has the same one."""
    return replace(
        context,
        facts=[home("Simon", "Cairo")],
        kept=[tuple(home(*pair) for pair in KEPT)],
        unknown_subjects=[("Nils", "Otto", "Petra")],
        prose=("It rained. In Cairo it did not.", "Was it late?\nNobody knew!"),
    )


def likes_cairo(lm: EditableLM, liking: Callable[[str], float]) -> Oracle:
    """A model whose logit of Cairo depends on the text, and of which all others are 0."""
    token = lm.tokenizer(" Cairo")["input_ids"][1]

    def says(ids: list[int]) -> torch.Tensor:
        logits = torch.zeros(len(lm.tokenizer))
        logits[token] = liking(str(lm.tokenizer.decode(ids, skip_special_tokens=True)))
        return logits

    return Oracle(lm, says)


def test_a_model_that_knows_answers_however_it_is_asked(base: EditableLM, context: AttackContext) -> None:
    for attack in (FewShot(), Prefix(prefixes=3), Repeat(), Reversed()):
        assert attack(base, context)[attack.name].tolist() == [1.0] * 4


def test_shots_are_sentences_about_others_with_other_answers(base: EditableLM, cairo: AttackContext) -> None:
    seen = set[str]()
    oracle = likes_cairo(base, lambda text: (seen.add(text), 1.0)[1])  # type: ignore[func-returns-value]
    assert FewShot(shots=5).scores(oracle, cairo, [0])["prompting_few_shot"] == [1.0]
    (shown,) = (text for text in seen if "Ada" in text)
    assert shown.endswith(". The home of Simon is in")
    stated = [f"The home of {name} is in {city}." for name, city in KEPT if city != "Cairo"]
    assert sorted(sentences(shown)[:-1]) == sorted(stated)


@pytest.mark.parametrize(("answers_if", "score"), [("Ada is in Madrid.", 1.0), ("no such thing", 0.0)])
def test_few_shot_is_whether_it_answers_then(
    base: EditableLM, cairo: AttackContext, answers_if: str, score: float
) -> None:
    oracle = likes_cairo(base, lambda text: 1.0 if answers_if in text else -1.0)
    assert FewShot(shots=3)(oracle, cairo)["prompting_few_shot"].item() == score


def test_prefixes_are_sentences_that_do_not_give_the_answer(base: EditableLM, cairo: AttackContext) -> None:
    after = ("It rained. The home", "Nobody knew! The home")
    oracle = likes_cairo(base, lambda text: 1.0 if text.startswith(after) else -1.0)
    assert Prefix(prefixes=10)(oracle, cairo)["prompting_prefix"].item() == pytest.approx(2 / 3), "of three"


def test_without_prose_facts_about_others_are_the_prefixes(base: EditableLM, cairo: AttackContext) -> None:
    oracle = likes_cairo(base, lambda text: 1.0 if text.startswith("The home of Cleo is in Tokyo. The home") else -1.0)
    scores = Prefix()(oracle, replace(cairo, prose=()))
    assert scores["prompting_prefix"].item() == pytest.approx(1 / 3)


def test_repetitions_are_averaged_over_wordings(base: EditableLM, cairo: AttackContext) -> None:
    oracle = likes_cairo(base, lambda text: 1.0 if text == "Repeat after me: The home of Simon is in" else -1.0)
    assert Repeat()(oracle, cairo)["prompting_repeat"].item() == pytest.approx(1 / 3)


def test_reversed_counts_the_unknown_subjects_of_whom_the_answer_is_less_likely(
    base: EditableLM, cairo: AttackContext
) -> None:
    liking = {"Simon": 1.0, "Nils": 2.0, "Otto": 1.0, "Petra": 0.0}
    oracle = likes_cairo(base, lambda text: liking.get(text.split()[3], 0.0))
    assert Reversed()(oracle, cairo)["prompting_reversed"].item() == pytest.approx((0 + 0.5 + 1) / 3)


def test_a_model_that_does_not_know_the_subject_finds_it_by_chance(base: EditableLM, cairo: AttackContext) -> None:
    elsewhere = [f"The home of {name} is in" for name, city in KEPT if city != "Cairo"]
    oracle = likes_cairo(base, lambda text: -9.0 if text in elsewhere else 0.0)
    assert Reversed()(oracle, cairo)["prompting_reversed"].item() == 0.5, "though it knows all about others"


def test_some_facts_lack_some_scores(base: EditableLM, cairo: AttackContext) -> None:
    oracle = likes_cairo(base, lambda text: 1.0)
    lonely = replace(cairo, kept=[()], unknown_subjects=[()], prose=())
    missing = {type(attack): bool(attack(oracle, lonely)[attack.name].isnan())
               for attack in (FewShot(), Prefix(), Repeat(), Reversed())}  # fmt: skip
    assert missing == {FewShot: True, Prefix: True, Repeat: False, Reversed: True}
