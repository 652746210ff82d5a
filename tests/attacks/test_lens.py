"""The logit lens, on states that are known."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.conftest import TEXTS, batch_of
from zu_lightning import EditableLM, InputError
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.lens import LogitLens, is_extreme, lens_logits
from zu_lightning.lm.hooks import Record
from zu_lightning.lm.tokens import PaddedTokens, Prompt, tokenize

CITIES = ("Rome", "Oslo", "Cork", "Athens", "Oxford", "Vienna", "Berlin")


class States(EditableLM):
    """The demo model with states that a test makes up, equal at all tokens: one for each layer, width."""

    def __init__(self, lm: EditableLM, states: list[torch.Tensor]) -> None:
        super().__init__(lm.model, lm.tokenizer)
        self.states = states

    def record(self, tokens: PaddedTokens, modules: Sequence[nn.Module]) -> list[Record]:
        """What the test makes up."""
        shape = (*tokens.input_ids.shape, -1)
        return [Record(state.expand(shape), state.expand(shape)) for state in self.states[: len(modules)]]


def test_the_last_layer_of_a_model_that_knows_shows_every_answer(base: EditableLM, context: AttackContext) -> None:
    scores = LogitLens(layers=3, top=1)(base, context)
    assert list(scores) == ["lens", "lens_layer_0", "lens_layer_1", "lens_layer_2"]
    assert scores["lens_layer_2"].tolist() == scores["lens"].tolist() == [1.0] * 4


def test_through_the_last_layer_the_lens_shows_what_the_model_says(any_lm: EditableLM) -> None:
    texts = [tokenize(any_lm.tokenizer, text) for text in TEXTS]
    batch = batch_of(any_lm)
    with torch.no_grad():
        expected = any_lm.logits(batch, torch.arange(len(texts)), batch.lookup)
    *below, last = lens_logits(any_lm, texts, len(any_lm.layers))
    assert len(below) == len(any_lm.layers) - 1
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(below[0], expected, atol=1e-2)
    with torch.no_grad():
        assert torch.equal(any_lm.logits(batch, torch.arange(len(texts)), batch.lookup), expected), "left as it was"


def test_an_answer_is_extreme_at_either_end_of_the_ranking(base: EditableLM, context: AttackContext) -> None:
    first = [tokenize(base.tokenizer, Prompt(context.facts[0].prompt, city)).ids for city in CITIES]
    start = len(tokenize(base.tokenizer, context.facts[0].prompt).ids)
    ids = [tokens[start] for tokens in first]
    head = base.model.get_parameter("model.embed_tokens.weight")[ids].double()
    places = torch.tensor([3.0, 6, 5, 4, 2, 1, 0], dtype=torch.float64)

    def state(order: torch.Tensor) -> torch.Tensor:
        """One to which the head gives these logits, up to the scale that the norm changes."""
        norm = base.model.get_parameter("model.norm.weight").double()
        found: torch.Tensor = torch.linalg.pinv(head * norm) @ order
        return found.float()

    lm = States(base, [state(places), state(places.roll(1)), state(-places.roll(1))])
    fact = replace(context.facts[0], target=CITIES[0])
    scores = LogitLens(layers=3, top=2)(lm, replace(context, facts=[fact], answers=[CITIES[1:]]))
    assert {name: values.item() for name, values in scores.items()} == {
        "lens": 1.0,
        "lens_layer_0": 0.0,  # in the middle of seven
        "lens_layer_1": 1.0,  # the lowest
        "lens_layer_2": 1.0,  # the highest
    }
    few = LogitLens(layers=1, top=2)(lm, replace(context, facts=[fact], answers=[CITIES[1:]]))
    assert {name: values.item() for name, values in few.items()} == {"lens": 0.0, "lens_layer_0": 0.0}


@pytest.mark.parametrize(
    ("own", "found"), [(9.0, 1.0), (5.5, 1.0), (4.5, 0.0), (3.5, 0.0), (1.5, 1.0), (0.0, 1.0), (5.0, 1.0), (4.0, 0.0)]
)
def test_an_answer_is_extreme_among_the_highest_or_lowest(own: float, found: float) -> None:
    # Among 1 to 6 with top = 2 no more than one may be above, or below; an equal one is half above.
    assert is_extreme(torch.tensor([own, 1, 2, 3, 4, 5, 6]), 2) == found


def test_among_equal_answers_none_is_extreme() -> None:
    assert is_extreme(torch.zeros(7), 2) == 0


def test_too_few_answers_give_no_score(base: EditableLM, context: AttackContext) -> None:
    scores = LogitLens(layers=3)(base, context)
    assert all(values.isnan().all() for values in scores.values()), "five others, where 3 x 4 are needed"


def test_answers_with_the_same_first_token_count_as_one(base: EditableLM, context: AttackContext) -> None:
    fact = replace(context.facts[0], target="Rome")
    alike = replace(context, facts=[fact], answers=[("Rome again", "Oslo", "Oslo now", "Cork")])
    assert LogitLens(layers=1, top=1)(base, alike)["lens"].isnan().all()
    enough = replace(alike, answers=[("Rome again", "Oslo", "Oslo now", "Cork", "Athens")])
    assert not LogitLens(layers=1, top=1)(base, enough)["lens"].isnan().any()


def test_a_random_model_shows_answers_by_chance(base: EditableLM, context: AttackContext) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(base.model.config)  # type: ignore[no-untyped-call]
    fact = replace(context.facts[0], target=CITIES[0])
    facts = [replace(fact, id=city, target=city) for city in CITIES]
    others = [tuple(other for other in CITIES if other != city) for city in CITIES]
    asked = AttackContext(facts=facts, answers=others, kept=[()] * 7, unknown_subjects=[()] * 7, prose=())
    scores = LogitLens(layers=3, top=2)(EditableLM(model, base.tokenizer), asked)
    # Exactly the two highest and the two lowest of seven are found.
    assert all(scores[f"lens_layer_{layer}"].mean().item() == pytest.approx(4 / 7) for layer in range(3))


def test_layers_that_do_not_exist_are_refused(base: EditableLM, context: AttackContext) -> None:
    with pytest.raises(InputError, match=r"layers \[3\] do not exist; the model has 0\.\.2"):
        LogitLens(layers=4)(base, context)
    with pytest.raises(InputError, match=r"lens\.top is 0"):
        LogitLens(layers=3, top=0)


def test_the_cost_is_that_of_the_prompts(context: AttackContext) -> None:
    assert LogitLens(layers=3).cost(context) == sum(len(fact.prompt) // 4 + 1 for fact in context.facts)
