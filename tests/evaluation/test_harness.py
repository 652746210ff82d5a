"""Scores of downstream tasks, against what transformers says without lm_eval."""

import importlib.util
import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
import torch

from zu_lightning import EditableLM, InputError
from zu_lightning.evaluation import harness
from zu_lightning.evaluation.ability import Question, QuestionSet, TextSet, read_prose, read_questions
from zu_lightning.evaluation.harness import TaskScore, _accuracy, _word_perplexity, measure_tasks, require_lm_eval

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed: pip install -e '.[downstream]'"
)

THREE = (
    Question("Ada Novak works as a", ("baker", "surgeon of the heart"), 0),
    Question("The mother tongue of Bruno Keller is", ("Danish", "Polish", "Greek"), 2),
    Question("Greta Holm plays the", ("cello", "violin"), 1),
)


def log_likelihood(lm: EditableLM, context: str, continuation: str) -> float:
    """Of one text after another, in nats."""
    before = lm.tokenizer(context).input_ids
    ids = torch.tensor([lm.tokenizer(context + continuation).input_ids])
    assert ids[0, : len(before)].tolist() == before
    with torch.no_grad():
        log_probability = lm.model(ids).logits.double().log_softmax(-1)
    return sum(float(log_probability[0, i - 1, ids[0, i]]) for i in range(len(before), ids.shape[1]))


def answers(lm: EditableLM) -> list[int]:
    """What the model answers to the three questions."""
    found = []
    for question in THREE:
        likelihoods = [log_likelihood(lm, question.prompt, f" {choice}") for choice in question.choices]
        found.append(likelihoods.index(max(likelihoods)))
    return found


def asking(*right: int) -> QuestionSet:
    """The three questions with other answers that count as right."""
    return QuestionSet("own", "Own", tuple(replace(q, answer=a) for q, a in zip(THREE, right, strict=True)))


@needs_lm_eval
@pytest.mark.parametrize("wrong", range(4))
def test_accuracy_is_what_one_computes_by_hand(wrong: int, demo_lm: EditableLM) -> None:
    said = answers(demo_lm)
    right = [(answer + 1) % len(q.choices) if i < wrong else answer
             for i, (answer, q) in enumerate(zip(said, THREE, strict=True))]  # fmt: skip
    score = measure_tasks(demo_lm, [asking(*right)])["own"]
    assert score.value == pytest.approx(100 * (3 - wrong) / 3)
    assert score.stderr == pytest.approx(100 * stdev([float(i < wrong) for i in range(3)]) / 3**0.5)


@needs_lm_eval
def test_a_batch_of_any_size_gives_one_score_and_nothing_is_left_changed(
    demo_lm: EditableLM, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    asked = asking(0, 1, 0)
    state, tokenizer = torch.get_rng_state(), demo_lm.tokenizer.init_kwargs | demo_lm.tokenizer.special_tokens_map
    level = logging.getLogger("lm_eval").level
    with caplog.at_level(logging.INFO):
        scores = [measure_tasks(demo_lm, [asked], batch_size)["own"] for batch_size in (1, 3, 8)]
    assert scores[0] == scores[1] == scores[2]
    assert torch.equal(torch.get_rng_state(), state)
    assert demo_lm.tokenizer.init_kwargs | demo_lm.tokenizer.special_tokens_map == tokenizer
    assert logging.getLogger("lm_eval").level == level
    assert capsys.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]


@needs_lm_eval
def test_the_model_is_asked_as_it_is_in_memory(lm: EditableLM) -> None:
    before = answers(lm)
    assert measure_tasks(lm, [asking(*before)])["own"].value == 100
    for layer in range(3):
        lm.set_weight(layer, -30 * lm.weight(layer).roll(1, 0))
    after = answers(lm)
    assert after != before
    kept = sum(old == new for old, new in zip(before, after, strict=True))
    assert measure_tasks(lm, [asking(*before)])["own"].value == pytest.approx(100 * kept / 3)


@needs_lm_eval
def test_perplexity_is_per_word_of_the_text(demo_lm: EditableLM) -> None:
    texts = ("Ada Novak works as a baker.", "In the morning, a quiet river stood behind the mill.")
    nats = []
    for text in texts:
        ids = demo_lm.tokenizer(text).input_ids
        # lm_eval reads a text after the token that begins one, besides what the tokenizer adds.
        ids = torch.tensor([[demo_lm.tokenizer.bos_token_id, *ids]])
        with torch.no_grad():
            log_probability = demo_lm.model(ids).logits.double().log_softmax(-1)
        nats.append(-float(log_probability[0, :-1].gather(1, ids[0, 1:, None]).sum()))
    words = [len(re.split(r"\s+", text)) for text in texts]
    score = measure_tasks(demo_lm, [TextSet(texts)])["wikitext"]
    assert score.value == pytest.approx(math.exp(sum(nats) / sum(words)), rel=1e-4)
    assert score.stderr > 0


@needs_lm_eval
def test_a_prompt_that_is_too_long_is_spoken_of(lm: EditableLM, caplog: pytest.LogCaptureFixture) -> None:
    asked = QuestionSet("own", "Own", (Question("word " * 200, ("a", "b"), 0), THREE[0]))
    with caplog.at_level(logging.WARNING):
        measure_tasks(lm, [asked])
    assert "Own: 1 of 2 prompts are longer than 128 tokens and lose their beginning." in caplog.text


@needs_lm_eval
def test_real_subsets_are_answered(demo_lm: EditableLM, shared: Path) -> None:
    sets = [*read_questions(shared / "data" / "glue_mmlu", limit=2)]
    scores = measure_tasks(demo_lm, [*sets, read_prose(str(shared / "data" / "wiki" / "wikitext2_test.txt"), 1)])
    assert list(scores) == ["sst2", "mmlu", "mrpc", "cola", "rte", "nli", "wikitext"]
    assert all(score.value in (0, 50, 100) for name, score in scores.items() if name != "wikitext")


def test_without_lm_eval_the_remedy_is_named(demo_lm: EditableLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    for attempt in (require_lm_eval, lambda: measure_tasks(demo_lm, [])):
        with pytest.raises(InputError, match=r"lm_eval, which is not installed: pip install"):
            attempt()


def test_standard_errors() -> None:
    score = _accuracy([1, 0, 1, 1])
    assert (score.value, score.stderr) == pytest.approx((75, 100 * stdev([1, 0, 1, 1]) / 2))
    assert _accuracy([1, 1]) == TaskScore(100, 0)
    assert math.isnan(_accuracy([1]).stderr)
    # Documents of one length: the error of exp(mean) is exp(mean) times that of the mean.
    score = _word_perplexity([(-20.0, 10), (-30.0, 10), (-40.0, 10)])
    assert (score.value, score.stderr) == pytest.approx((math.exp(3), math.exp(3) * stdev([2, 3, 4]) / 3**0.5))
    assert math.isnan(_word_perplexity([(-20.0, 10)]).stderr)
    assert math.isinf(_word_perplexity([(-1e6, 10), (-1e6, 10)]).value)
