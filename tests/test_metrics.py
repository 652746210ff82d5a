"""Metrics against generation, torchmetrics and sums over shards."""

import pytest
import torch
from torchmetrics.text import Perplexity as ReferencePerplexity

from tests.conftest import TEXTS
from zu_lightning import EditableLM, Fact, Query, evaluate, evaluation_batches
from zu_lightning.evaluation.evaluate import compute_metrics, evaluation_metrics, update_metric
from zu_lightning.lm.tokens import tokenize
from zu_lightning.metrics import Efficacy, Perplexity, answer_scores


def known_facts(lm: EditableLM, count: int = 6) -> list[Fact]:
    """Half with what the model says (three tokens), half with something else."""
    facts = []
    for i in range(count):
        prompt = f"{TEXTS[i % len(TEXTS)][: 12 + i]}"
        target = lm.generate(prompt, 3) if i % 2 else " baker"
        facts.append(Fact(str(i), prompt, target.strip() or "x", None, len(prompt)))
    return facts


def test_exact_match_is_that_of_greedy_generation(lm: EditableLM) -> None:
    facts = known_facts(lm, 12)
    expected, asked = [], []
    for fact in facts:
        text = tokenize(lm.tokenizer, fact.prompt, answer=fact.target)
        if tokenize(lm.tokenizer, fact.prompt).ids != text.ids[: text.answer]:
            continue
        ids = torch.tensor([text.ids[: text.answer]])
        new = lm.model.generate(ids, max_new_tokens=len(text.ids) - text.answer, do_sample=False, eos_token_id=None)
        expected.append(new[0].tolist() == text.ids)
        asked.append(fact)
    figures = evaluate(lm, evaluation_batches(lm, asked, [], []))
    assert figures["efficacy"] == pytest.approx(100 * sum(expected) / len(expected))


def test_probability_is_the_product_over_the_answers_tokens(lm: EditableLM) -> None:
    fact = Fact("1", "Ada Novak works as a", "quiet river", None, 20)
    text = tokenize(lm.tokenizer, fact.prompt, answer=fact.target)
    with torch.no_grad():
        log_probability = lm.model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)
    expected = sum(log_probability[i - 1, text.ids[i]] for i in range(text.answer, len(text.ids)))
    figures = evaluate(lm, evaluation_batches(lm, [fact], [], []))
    assert figures["efficacy_probability"] == pytest.approx(expected.exp().item(), rel=1e-4)


def test_token_accuracy_gives_credit_for_parts() -> None:
    logits = torch.eye(4)[[1, 2, 3, 0]] * 5
    scores = answer_scores(logits, torch.tensor([1, 0, 3, 0]), torch.tensor([0, 0, 1, 1]), 2)
    assert scores.exact.tolist() == [False, True]
    assert scores.token_accuracy.tolist() == [0.5, 1.0]


def test_multi_hop_questions_are_asked_once(lm: EditableLM) -> None:
    question = Query("Who taught Ada?", "Bo")
    facts = [Fact(str(i), f"Ada {i} is", "x", None, 6, multi_hop=(question,)) for i in range(2)]
    batches = evaluation_batches(lm, facts, [], [])
    assert sum(len(batch.texts.lengths) for batch in batches if batch.metric == "multi_hop") == 1
    assert 0 < evaluate(lm, batches)["multi_hop_probability"] < 1


def test_perplexity_is_that_of_torchmetrics() -> None:
    logits, tokens = torch.randn(50, 11), torch.randint(0, 11, (50,))
    ours, reference = Perplexity(), ReferencePerplexity()
    ours.update(logits, tokens)
    reference.update(logits[None], tokens[None])
    assert ours.compute()["perplexity"].item() == pytest.approx(reference.compute().item(), rel=1e-5)


def test_perplexity_stays_finite_where_probabilities_underflow() -> None:
    metric = Perplexity()
    metric.update(torch.tensor([[0.0, 200.0]]), torch.tensor([0]))
    assert torch.isfinite(metric.compute()["perplexity"])


def test_figures_do_not_depend_on_batches_or_their_order(lm: EditableLM) -> None:
    facts = known_facts(lm)
    forget = [Fact("f", facts[0].prompt, facts[0].target, None, 5, (facts[1].prompt,), (facts[2].query,))]
    small = evaluation_batches(lm, forget, facts, TEXTS, max_tokens=1)
    large = evaluation_batches(lm, forget, facts, TEXTS)
    assert len(small) > len(large)
    figures = evaluate(lm, large)
    assert set(figures) >= {"efficacy", "generalization", "specificity", "retain", "perplexity"}
    assert evaluate(lm, reversed(small)) == pytest.approx(figures, rel=1e-4)


def test_sums_of_shards_are_the_whole(lm: EditableLM) -> None:
    batches = evaluation_batches(lm, known_facts(lm), [], TEXTS, max_tokens=30)
    shards = [evaluation_metrics(), evaluation_metrics()]
    for i, batch in enumerate(batches):
        update_metric(lm, shards[i % 2], batch)
    for name in ("efficacy", "perplexity"):
        for state in shards[0][name]._defaults:
            setattr(shards[0][name], state, getattr(shards[0][name], state) + getattr(shards[1][name], state))
    assert compute_metrics(shards[0]) == pytest.approx(evaluate(lm, batches))


def test_a_neighbour_that_is_itself_forgotten_is_no_neighbour(lm: EditableLM) -> None:
    ada = Fact("a", "Ada is a", "baker", "Ada", 3, neighbors=(Query("Bo is a", "baker"), Query("Cy is a", "baker")))
    bo = Fact("b", "Bo works as a", "baker", "Bo", 2)
    asked = [b for b in evaluation_batches(lm, [ada, bo], [], []) if b.metric == "specificity"]
    assert sum(len(batch.texts.lengths) for batch in asked) == 1


def test_what_was_not_measured_is_left_out(lm: EditableLM) -> None:
    figures = evaluate(lm, evaluation_batches(lm, known_facts(lm), [], []))
    assert set(figures) == {"efficacy", "efficacy_token_accuracy", "efficacy_probability"}


def test_wrong_shapes_are_refused_with_what_was_expected() -> None:
    with pytest.raises(ValueError, match=r"expected to be \(tokens, vocabulary\) .* but got \(2, 3, 4\)"):
        answer_scores(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long), 1)


def test_an_answer_is_exact_only_if_all_its_tokens_are() -> None:
    metric = Efficacy()
    logits = torch.eye(4)[[0, 1, 2]]
    metric.update(logits, torch.tensor([0, 1, 3]), torch.tensor([0, 1, 1]), 2)
    assert metric.compute()["efficacy"] == 50
