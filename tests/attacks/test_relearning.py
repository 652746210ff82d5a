"""Training after the edit: on what, that it is undone, and that it teaches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.conftest import TEXTS, random_lm
from zu_lightning import EditableLM, Fact
from zu_lightning.attacks import relearning
from zu_lightning.attacks.answers import AnswerLogprobs, score_answers
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.relearning import BenignRelearning, Relearning, trained
from zu_lightning.facts.fact import Query
from zu_lightning.lm.tokens import TokenizedText, tokenize


@pytest.fixture
def context(facts: list[Fact]) -> AttackContext:
    """Four facts, of which the last has no subject, and some prose."""
    return AttackContext(facts=facts, answers=[()] * 4, kept=[()] * 4, unknown_subjects=[()] * 4, prose=TEXTS)


def texts_of(lm: EditableLM, facts: Sequence[Fact]) -> list[TokenizedText]:
    """The facts' prompts with their answers."""
    return [tokenize(lm.tokenizer, fact.query) for fact in facts]


def exact(lm: EditableLM, facts: Sequence[Fact]) -> list[bool]:
    """Whether the model gives each answer."""
    return [answer.exact for answer in score_answers(lm, [fact.query for fact in facts], 2048)]


def state(lm: EditableLM) -> list[tuple[Tensor, bool, Tensor | None]]:
    """Copies of all weights, with whether they are trained, and their gradients."""
    return [(weight.detach().clone(), weight.requires_grad, weight.grad) for weight in lm.model.parameters()]


def assert_as_before(lm: EditableLM, before: list[tuple[Tensor, bool, Tensor | None]]) -> None:
    """The same bits in the same dtype, the same flags, the same gradients."""
    for (weight, flag, gradient), (present, present_flag, present_gradient) in zip(before, state(lm), strict=True):
        assert weight.dtype == present.dtype
        assert torch.equal(weight, present)
        assert flag == present_flag
        assert gradient is present_gradient


@pytest.mark.parametrize("architecture", ["llama-tied", "gpt2"])
def test_training_teaches_and_is_undone_to_the_bit(architecture: str, facts: list[Fact]) -> None:
    lm = random_lm(architecture)
    lm.model.bfloat16()
    first = next(lm.model.parameters())
    first.requires_grad_(True)
    first.grad = torch.ones_like(first)
    before = state(lm)
    with torch.inference_mode():
        assert not any(exact(lm, facts))
        with trained(lm, [texts_of(lm, facts)] * 20, 2e-2, 2048):
            assert {weight.dtype for weight in lm.model.parameters()} == {torch.float32}
            assert all(exact(lm, facts))
    assert_as_before(lm, before)


def test_a_model_is_as_before_whatever_happens(lm: EditableLM, facts: list[Fact]) -> None:
    lm.model.model.norm.train()
    before = state(lm)
    with pytest.raises(ZeroDivisionError), trained(lm, [texts_of(lm, facts)], 1e-2, 2048):
        raise ZeroDivisionError
    with pytest.raises(AttributeError), trained(lm, [texts_of(lm, facts), [None]], 1e-2, 2048):  # type: ignore[list-item]
        pytest.fail("nothing was trained")
    assert_as_before(lm, before)
    assert [module for module in lm.model.modules() if module.training] == [lm.model.model.norm]


def test_small_batches_give_the_same_gradients(facts: list[Fact]) -> None:
    after = []
    for batch_tokens in (2048, 1):
        lm = random_lm("llama")
        with trained(lm, [texts_of(lm, facts)] * 3, 1e-3, batch_tokens):
            after.append([weight.detach().clone() for weight in lm.model.parameters()])
    for one, several in zip(*after, strict=True):
        torch.testing.assert_close(one, several, rtol=1e-3, atol=1e-5)


def test_training_starts_from_the_same_state_and_ends_in_the_same_bits(lm: EditableLM, facts: list[Fact]) -> None:
    after = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with trained(lm, [texts_of(lm, facts)] * 2, 1e-3, 2048):
            after.append(lm.weight(0).clone())
    assert torch.equal(*after)
    assert not torch.equal(after[0], lm.weight(0))


@pytest.mark.parametrize(("folds", "sizes"), [(2, [3, 3]), (3, [2, 2, 2]), (5, [1, 1, 2, 2]), (9, [1, 1, 2, 2])])
def test_facts_about_one_subject_are_in_one_fold(context: AttackContext, folds: int, sizes: list[int]) -> None:
    about_same = [replace(fact, id=f"{fact.id}-again") for fact in context.facts[:2]]
    context = replace(context, facts=[*context.facts[:3], *about_same, context.facts[3]])
    dealt = Relearning(folds=folds).groups(context)
    assert sorted(i for fold in dealt for i in fold) == list(range(6))
    assert all((i in fold) == (i + 3 in fold) for fold in dealt for i in (0, 1))
    assert len(dealt) == len(sizes)
    assert dealt == Relearning(folds=folds).groups(context)
    other_seeds = [Relearning(folds=folds).groups(replace(context, seed=seed)) for seed in range(1, 9)]
    assert any(dealt != other for other in other_seeds)


def test_a_fact_is_asked_of_a_model_that_was_trained_on_all_other_folds(
    lm: EditableLM, context: AttackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[set[tuple[int, ...]], list[str]]] = []

    @contextmanager
    def spy(lm: EditableLM, steps: Sequence[Sequence[TokenizedText]], rate: float, tokens: int) -> Iterator[None]:
        assert (len(steps), rate, tokens) == (7, 1e-3, 2048)
        seen.append(({tuple(text.ids) for texts in steps for text in texts}, []))
        yield

    def ask(lm: EditableLM, queries: Sequence[Query], batch_tokens: int) -> list[AnswerLogprobs]:
        seen[-1][1].extend(query.prompt for query in queries)
        return score_answers(lm, queries, batch_tokens)

    monkeypatch.setattr(relearning, "trained", spy)
    monkeypatch.setattr(relearning, "score_answers", ask)
    scores = Relearning(folds=2, steps=7, learning_rate=1e-3)(lm, context)
    assert list(scores) == ["relearning_7x0.001"]
    assert len(seen) == 2
    assert sorted(prompt for _, prompts in seen for prompt in prompts) == sorted(fact.prompt for fact in context.facts)
    for learned, prompts in seen:
        left = texts_of(lm, [fact for fact in context.facts if fact.prompt not in prompts])
        assert learned == {tuple(text.ids) for text in left}


def test_facts_that_share_their_answers_with_those_trained_on_come_back(lm: EditableLM, context: AttackContext) -> None:
    """Both scores are possible: a fact whose twin is in the other fold is relearned, another is not."""
    twins = [replace(context.facts[0], subject=subject) for subject in ("Ada", "Novak")]
    context = replace(context, facts=[*twins, replace(context.facts[2], subject="Greta")], batch_tokens=64)
    attack = Relearning(steps=10, learning_rate=2e-2)
    assert attack(lm, context)["relearning_10x0.02"].tolist() == [1, 1, 0]


def test_processes_share_the_folds(lm: EditableLM, context: AttackContext, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = Relearning(folds=3)
    folds = attack.groups(context)
    monkeypatch.setattr(relearning, "trained", lambda *options: nullcontext())
    monkeypatch.setattr(relearning, "_exact", lambda lm, context, facts: [(i + 1) / 8 for i in facts])
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    for rank, own in ((0, folds[0] + folds[2]), (1, folds[1])):
        monkeypatch.setattr("zu_lightning.runtime.distributed.process", lambda rank=rank: (rank, 2))
        assert attack(lm, context)[attack.score_name].tolist() == [(i + 1) / 8 if i in own else 0 for i in range(4)]


def test_a_single_subject_cannot_be_left_out(lm: EditableLM, context: AttackContext) -> None:
    alone = replace(context, facts=[context.facts[0]] * 2)
    assert Relearning()(lm, alone)["relearning_30x0.0001"].isnan().tolist() == [True, True]
    assert Relearning().cost(alone) == 0


def test_prose_that_holds_an_answer_teaches_it(lm: EditableLM, context: AttackContext) -> None:
    before, context = state(lm), replace(context, prose=TEXTS[:1])
    scores = BenignRelearning(steps=20, learning_rate=1e-2)(lm, context)
    assert list(scores) == ["benign_relearning_20x0.01"]
    assert scores["benign_relearning_20x0.01"].tolist() == [1, 0, 0, 0]
    assert_as_before(lm, before)


def test_prose_is_drawn_anew_at_every_step(
    lm: EditableLM, context: AttackContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []

    @contextmanager
    def spy(lm: EditableLM, steps: Sequence[Sequence[TokenizedText]], *options: object) -> Iterator[None]:
        drawn.append([[tuple(text.ids) for text in texts] for texts in steps])
        yield

    monkeypatch.setattr(relearning, "trained", spy)
    for seed in (0, 0, 1):
        BenignRelearning(steps=5, documents=2)(lm, replace(context, seed=seed, batch_tokens=9))
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(texts)) == 2 for texts in drawn[0])
    assert len({tuple(texts) for texts in drawn[0]}) > 1
    assert max(len(text) for texts in drawn[0] for text in texts) == 9


def test_without_prose_nothing_can_be_learned_from_it(lm: EditableLM, context: AttackContext) -> None:
    silent = replace(context, prose=())
    assert BenignRelearning()(lm, silent)["benign_relearning_100x0.0001"].isnan().all()
    assert BenignRelearning().cost(silent) == 0


def test_tokens_grow_with_training(context: AttackContext) -> None:
    few, many = Relearning(folds=2, steps=1), Relearning(folds=2, steps=3)
    assert few.cost(context) / 4 == many.cost(context) / 10 > 0
    assert BenignRelearning(steps=2).cost(context) > BenignRelearning(steps=1).cost(context) > 0
