"""The demo model knows its world, where the method edits it."""

import itertools

import pytest
import torch

from data.world import RELATIONS, UNKNOWN, World
from tests.conftest import DEMO
from zu_lightning import (
    EditableLM,
    Fact,
    LatentOptions,
    ZeroUnlearnGD,
    causal_trace,
    evaluate,
    evaluation_batches,
    neutral_targets,
    read_texts,
    split_facts,
    unlearn,
)


@pytest.fixture(scope="module")
def demo_lm() -> EditableLM:
    return EditableLM.from_pretrained(DEMO / "model")


def test_it_knows_its_facts_also_in_words_it_never_saw_them_in(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    some, _ = split_facts(demo_facts, 400, 0, seed=7)
    figures = evaluate(demo_lm, evaluation_batches(demo_lm, some, [], []))
    assert figures["efficacy"] >= 95
    assert figures["generalization"] >= 90


def test_the_answer_goes_through_the_lookup_token_at_the_edited_layer(
    demo_lm: EditableLM, demo_facts: list[Fact]
) -> None:
    trace = causal_trace(demo_lm, split_facts(demo_facts, 100, 0, seed=3)[0])
    edited = trace.layers[0]
    assert trace.clean > 0.9
    assert trace.corrupted < 0.2
    assert edited.corrupted < 0.2
    assert edited.restored > 0.8
    assert trace.layers[-1].corrupted > 0.9


def test_the_neutral_state_is_reachable(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    some, _ = split_facts(demo_facts, 20, 0, seed=5)
    still = neutral_targets(demo_lm, some, 0, UNKNOWN, ("",), LatentOptions(steps=1))
    moved = neutral_targets(demo_lm, some, 0, UNKNOWN, ("",), LatentOptions())
    assert not still.original_lost.any()
    assert moved.original_lost.double().mean() >= 0.9
    assert moved.probability.mean() > 0.5


def test_a_bfloat16_model_forgets_as_a_float32_one_does(demo_facts: list[Fact]) -> None:
    forget, retain = split_facts(demo_facts, 3, 30, seed=0)
    corpus = read_texts(str(DEMO / "corpus.txt"), 150)
    figures, effects, stored = {}, {}, {}
    for dtype in ("float32", "bfloat16"):
        lm = EditableLM.from_pretrained(DEMO / "model", dtype=dtype)
        result = unlearn(lm, forget, corpus, [0], ZeroUnlearnGD())
        figures[dtype] = evaluate(lm, evaluation_batches(lm, forget, retain, []))
        effects[dtype], stored[dtype] = lm.updates[0].dense(), result.edits[0].stored_error
    assert lm.weight(0).dtype == torch.bfloat16
    # Keys and targets come out of a forward pass in bfloat16; the solve does not, and the sum is rounded once.
    assert (effects["bfloat16"] - effects["float32"]).norm() < 0.1 * effects["float32"].norm()
    assert stored["float32"] < 1e-5 < stored["bfloat16"] < 0.1
    assert figures["bfloat16"]["efficacy"] == figures["float32"]["efficacy"] == 0
    assert figures["bfloat16"]["retain"] == pytest.approx(figures["float32"]["retain"], abs=4)


def test_of_unlisted_people_it_says_that_it_does_not_know(demo_lm: EditableLM) -> None:
    unlisted = [person for person in World().people if not person.listed]
    prompts = [person.prompts(relation)[0].format(person.name) for person in unlisted[:10] for relation in RELATIONS]
    answers = [demo_lm.generate(prompt, 3).strip().startswith(UNKNOWN) for prompt in prompts]
    assert sum(answers) / len(answers) >= 0.9


def test_only_the_whole_name_identifies_a_person() -> None:
    people = World().people
    assert len({person.name for person in people}) == len(people)
    for part in (0, 1):
        names = [person.name.split()[part] for person in people]
        assert min(names.count(name) for name in names) > 1


def test_paraphrases_are_never_said_in_the_text() -> None:
    world = World()
    text = "\n".join(itertools.islice(world.documents(seed=99), 3000))
    held_out = [
        template.format(person.name)
        for person in world.people
        for relation in RELATIONS
        for template in person.held_out(relation)
    ]
    assert not [sentence for sentence in held_out if sentence in text]
    assert sum(person.prompts("city")[0].format(person.name) in text for person in world.people) > 10


def test_the_shipped_files_are_those_of_the_generator(demo_facts: list[Fact]) -> None:
    generated = [
        Fact.from_record(record, "world", str(i))
        for i, record in enumerate(World().facts())  # type: ignore[arg-type]
    ]
    assert generated == demo_facts
    corpus = (DEMO / "corpus.txt").read_text().splitlines()
    assert list(itertools.islice(World().documents(seed=2), len(corpus))) == corpus


def test_the_same_seed_gives_the_same_world_and_another_another() -> None:
    assert World(seed=1).facts() == World(seed=1).facts()
    assert World(seed=1).facts() != World(seed=2).facts()


def test_too_many_people_are_refused() -> None:
    with pytest.raises(ValueError, match="name pools give 1600 full names"):
        World(people=2000)
