"""The demo model knows its world, where the method edits it, and forgets in any dtype."""

from collections.abc import Iterator

import pytest
import torch

from data.world import RELATIONS, UNKNOWN, World
from tests.conftest import DEMO
from zu_lightning import (
    EditableLM,
    Fact,
    LatentOptions,
    Request,
    ZeroUnlearnGD,
    causal_trace,
    evaluate,
    evaluation_batches,
    neutral_targets,
    read_texts,
    split_facts,
    unlearn,
)
from zu_lightning.editing.latents import Aim
from zu_lightning.editing.prompts import PromptVariants


def test_it_knows_its_facts_also_in_words_it_never_saw_them_in(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    some, *_ = split_facts(demo_facts, 200, seed=7)
    scores = evaluate(demo_lm, evaluation_batches(demo_lm, some, [], []))
    assert scores["efficacy"] >= 95
    assert scores["generalization"] >= 90


def test_the_answer_goes_through_the_lookup_token_at_the_edited_layer(
    demo_lm: EditableLM, demo_facts: list[Fact]
) -> None:
    trace = causal_trace(demo_lm, split_facts(demo_facts, 100, seed=3)[0])
    edited = trace.layers[0]
    assert trace.clean > 0.9
    assert trace.corrupted < 0.2
    assert edited.corrupted < 0.2
    assert edited.restored > 0.8
    assert trace.layers[-1].corrupted > 0.9


def test_the_neutral_state_is_reachable(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    some, *_ = split_facts(demo_facts, 20, seed=5)
    still, moved = (
        neutral_targets(
            demo_lm, some, 0, PromptVariants(), Aim(UNKNOWN), ZeroUnlearnGD(latents=LatentOptions(steps=steps))
        )
        for steps in (1, 25)
    )
    assert not still.original_lost.any()
    assert moved.original_lost.double().mean() >= 0.9
    assert moved.probability.mean() > 0.5


def test_a_bfloat16_model_forgets_as_a_float32_one_does(demo_facts: list[Fact]) -> None:
    corpus = read_texts(str(DEMO / "corpus.txt"), 60)
    request = Request.draw(demo_facts, corpus, forget=3, retain=15, heldout=[])
    scores, changes, stored = {}, {}, {}
    for dtype in ("float32", "bfloat16"):
        lm = EditableLM.from_pretrained(DEMO / "model", dtype=dtype)
        edit = unlearn(lm, request, ZeroUnlearnGD()).edits[0]
        scores[dtype] = evaluate(lm, evaluation_batches(lm, request.forget, request.retain, []))
        changes[dtype], stored[dtype] = edit.update.dense(), edit.scores.stored_error
    assert lm.weight(0).dtype == torch.bfloat16
    # Keys and targets come out of a forward pass in bfloat16; the solve does not, and the sum is rounded once.
    assert (changes["bfloat16"] - changes["float32"]).norm() < 0.1 * changes["float32"].norm()
    assert stored["float32"] < 1e-5 < stored["bfloat16"] < 0.1
    assert scores["bfloat16"]["efficacy"] == scores["float32"]["efficacy"] == 0
    assert scores["bfloat16"]["retain"] == pytest.approx(scores["float32"]["retain"], abs=7)


def test_of_unlisted_people_it_says_that_it_does_not_know(demo_lm: EditableLM) -> None:
    answers = [demo_lm.generate(prompt, 3).strip().startswith(UNKNOWN) for prompt in unlisted_prompts(10)]
    assert sum(answers) / len(answers) >= 0.9


def unlisted_prompts(people: int) -> Iterator[str]:
    """What the text asks about people of whom it says nothing."""
    for person in [person for person in World().people if not person.listed][:people]:
        for relation in RELATIONS:
            yield person.prompts(relation)[0].format(person.name)
