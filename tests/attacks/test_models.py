"""All attacks on models of which it is known what they know, in one table."""

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.attacks.conftest import DISTRIBUTION, Oracle
from tests.conftest import DEMO
from zu_lightning import EditableLM, Fact, ReadingOptions, Request, RetainText, split_facts
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.membership import reference
from zu_lightning.attacks.presets import attacks_of, run_attacks
from zu_lightning.attacks.verdict import Verdict, verdict

NEUTRAL = "unknown"


@pytest.fixture(scope="module")
def context_of_ten(demo_facts: list[Fact]) -> AttackContext:
    """On the first of the facts that the README's command forgets."""
    forget = split_facts(demo_facts, 4)[0]
    request = Request(forget, RetainText([], ReadingOptions()), known=demo_facts, heldout=["The mill was quiet."])
    return AttackContext.of(request, 4)


@pytest.fixture(scope="module")
def verdicts(base: EditableLM, context_of_ten: AttackContext) -> dict[str, Verdict]:
    """What four models know, beside the gold that ships: it never knew the facts that the README's command forgets."""
    torch.manual_seed(0)
    models = {
        "base": base,
        "gold": EditableLM.from_pretrained(DEMO / "gold"),
        "neutral": Oracle(base, says_always(base, NEUTRAL)),
        "random": EditableLM(
            AutoModelForCausalLM.from_config(base.model.config),  # type: ignore[no-untyped-call]
            base.tokenizer,
        ),
    }
    attacks = attacks_of("quick", 3, {}, reference(models["gold"], context_of_ten))
    found = {name: run_attacks(lm, context_of_ten, attacks) for name, lm in models.items()}
    return {name: verdict(scores, found["base"], found["gold"]) for name, scores in found.items()}


def says_always(lm: EditableLM, answer: str) -> DISTRIBUTION:
    """A model that says a word, and that stays out of everything else."""
    ids = lm.tokenizer(f" {answer}")["input_ids"][1:]

    def says(text: list[int]) -> Tensor:
        logits = torch.zeros(len(lm.tokenizer))
        said = next((n for n in range(len(ids) - 1, 0, -1) if text[-n:] == ids[:n]), 0)
        logits[ids[said]] = 15.0
        return logits

    return says


def test_the_unedited_model_knows_everything(verdicts: dict[str, Verdict]) -> None:
    base = verdicts["base"]
    for name in (
        "rank_first",
        "rank_first_paraphrases",
        "leak",
        "leak_paraphrases",
        "rank_paraphrases",
        "prompting_few_shot",
        "memorization",
        "extraction",
    ):
        assert base.scores[name].edited > 0.95
    assert base.sentence.startswith("Masked, not erased")
    assert base.mean_gap is not None
    assert base.mean_gap.mean > 0.4


def test_gold_knows_nothing_and_is_not_harmed(verdicts: dict[str, Verdict]) -> None:
    gold = verdicts["gold"]
    assert gold.sentence.startswith("Erased")
    assert gold.kept is not None
    assert gold.kept > 0.95
    assert gold.scores["rank_first"].edited <= 0.1
    assert gold.scores["leak"].edited < 0.1
    assert 0.2 < gold.scores["rank"].edited < 0.8


def test_a_random_model_knows_nothing_and_is_harmed(verdicts: dict[str, Verdict]) -> None:
    assert verdicts["random"].scores["leak"].edited < 0.01
    assert verdicts["random"].scores["membership_loss"].edited == pytest.approx(0.5, abs=0.25)
    assert "harmed: it answers only 0%" in verdicts["random"].sentence


def test_a_model_that_always_says_the_neutral_word_does_not_look_perfect(verdicts: dict[str, Verdict]) -> None:
    neutral = verdicts["neutral"]
    assert neutral.scores["prompting_few_shot"].edited == neutral.scores["prompting_prefix"].edited == 0
    assert "harmed: it answers only 0%" in neutral.sentence
