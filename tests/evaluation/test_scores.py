"""What is asked before and after an edit, against generation, plain forward passes, and sums over shards."""

from dataclasses import replace

import pytest
import torch

from tests.conftest import TEXTS
from zu_lightning import EditableLM, Fact, InputError, Query, ReadingOptions, evaluate, evaluation_batches
from zu_lightning.evaluation.scores import EvaluationBatch, compute_metrics, evaluation_metrics, update_metric
from zu_lightning.lm.tokens import Prompt, tokenize

ONE_AT_A_TIME = ReadingOptions(batch_tokens=1)


def fact(name: str, prompt: str, target: str) -> Fact:
    return Fact(name, prompt, target, None, len(prompt))


def asked(batches: list[EvaluationBatch], metric: str) -> int:
    """How many queries a metric gets."""
    return sum(len(batch.texts.lengths) for batch in batches if batch.metric == metric)


def generated(lm: EditableLM, one: Fact) -> bool:
    """Whether greedy decoding, token after token, gives the answer."""
    text = tokenize(lm.tokenizer, Prompt(one.prompt, one.target))
    ids = torch.tensor([text.ids[: text.answer]])
    for _ in text.ids[text.answer :]:
        with torch.no_grad():
            ids = torch.cat([ids, lm.model(ids).logits[:, -1:].argmax(-1)], 1)
    return bool(ids[0].tolist() == text.ids)


def test_exact_match_is_that_of_greedy_generation(demo_lm: EditableLM, demo_facts: list[Fact]) -> None:
    known = demo_facts[:4]
    others = demo_facts[4:8]
    wrong = [replace(one, id=f"{one.id}-wrong", target=other.target) for one, other in zip(known, others, strict=True)]
    half = [replace(one, id=f"{one.id}-half", target=f"{one.target} {one.target}") for one in known]
    facts = [*known, *wrong, *half]
    expected = [generated(demo_lm, one) for one in facts]
    assert 0 < sum(expected) < len(expected)  # both kinds occur
    scores = evaluate(demo_lm, evaluation_batches(demo_lm, facts, [], []))
    assert scores["efficacy"] == pytest.approx(100 * sum(expected) / len(expected))
    assert scores["efficacy"] < scores["efficacy_token_accuracy"] < 100


def test_probability_is_the_product_over_the_tokens_of_the_answer(lm: EditableLM) -> None:
    one = fact("1", "Ada Novak works as a", "quiet river")
    text = tokenize(lm.tokenizer, Prompt(one.prompt, one.target))
    with torch.no_grad():
        log_probability = lm.model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
    expected = sum(log_probability[i - 1, text.ids[i]] for i in range(text.answer, len(text.ids)))
    scores = evaluate(lm, evaluation_batches(lm, [one], [], []))
    assert scores["efficacy_probability"] == pytest.approx(expected.exp().item(), rel=1e-4)


def test_perplexity_is_that_of_all_tokens_but_the_first(lm: EditableLM) -> None:
    total, count = 0.0, 0
    for text in TEXTS:
        ids = torch.tensor(tokenize(lm.tokenizer, text).ids)
        with torch.no_grad():
            log_probability = lm.model(ids[None]).logits[0, :-1].double().log_softmax(-1)
        total -= log_probability.gather(1, ids[1:, None]).sum().item()
        count += len(ids) - 1
    scores = evaluate(lm, evaluation_batches(lm, [], [], TEXTS))
    assert scores == {"perplexity": pytest.approx(torch.tensor(total / count).exp().item(), rel=1e-4)}


def test_multi_hop_questions_are_asked_once(lm: EditableLM) -> None:
    question = Query("Who taught Ada?", "Bo")
    facts = [replace(fact(str(i), f"Ada {i} is", "x"), multi_hop=(question,)) for i in range(2)]
    batches = evaluation_batches(lm, facts, [], [])
    assert asked(batches, "multi_hop") == 1
    assert 0 < evaluate(lm, batches)["multi_hop_probability"] < 1


@pytest.fixture
def forget(facts: list[Fact]) -> list[Fact]:
    """A fact with one query for every metric."""
    return [replace(facts[0], paraphrases=(facts[1].prompt,), neighbors=(facts[2].query,), multi_hop=(facts[3].query,))]


def test_scores_do_not_depend_on_batches_or_their_order(lm: EditableLM, forget: list[Fact], facts: list[Fact]) -> None:
    small = evaluation_batches(lm, forget, facts, TEXTS, ONE_AT_A_TIME)
    large = evaluation_batches(lm, forget, facts, TEXTS)
    assert len(small) > len(large)
    scores = evaluate(lm, large)
    assert set(scores) >= {"efficacy", "generalization", "specificity", "multi_hop", "retain", "perplexity"}
    assert evaluate(lm, reversed(small)) == pytest.approx(scores, rel=1e-4)


def test_sums_of_shards_are_the_whole(lm: EditableLM, facts: list[Fact]) -> None:
    batches = evaluation_batches(lm, facts, [], TEXTS, ONE_AT_A_TIME)
    shards = [evaluation_metrics(), evaluation_metrics()]
    for i, batch in enumerate(batches):
        update_metric(lm, shards[i % 2], batch)
    for name in ("efficacy", "perplexity"):
        for state in shards[0][name]._defaults:
            setattr(shards[0][name], state, getattr(shards[0][name], state) + getattr(shards[1][name], state))
    assert compute_metrics(shards[0]) == pytest.approx(evaluate(lm, batches))


def test_a_neighbor_that_is_itself_forgotten_is_not_a_neighbor(lm: EditableLM) -> None:
    ada = Fact("a", "Ada is a", "baker", "Ada", 3, neighbors=(Query("Bo is a", "baker"), Query("Cy is a", "baker")))
    bo = Fact("b", "Bo works as a", "baker", "Bo", 2)
    assert asked(evaluation_batches(lm, [ada], [], []), "specificity") == 2
    assert asked(evaluation_batches(lm, [ada, bo], [], []), "specificity") == 1


def test_what_was_not_measured_is_left_out(lm: EditableLM, facts: list[Fact]) -> None:
    scores = evaluate(lm, evaluation_batches(lm, facts, [], []))
    assert set(scores) == {"efficacy", "efficacy_token_accuracy", "efficacy_probability"}


def test_a_prompt_that_the_model_cannot_read_is_refused(lm: EditableLM) -> None:
    with pytest.raises(InputError, match=r"the model's context holds 128"):
        evaluation_batches(lm, [], [fact("long", "very " * 200 + "long", "x")], [])


def test_the_largest_batches_come_first(lm: EditableLM, forget: list[Fact], facts: list[Fact]) -> None:
    sizes = [b.texts.input_ids.numel() for b in evaluation_batches(lm, forget, facts, TEXTS, ONE_AT_A_TIME)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
