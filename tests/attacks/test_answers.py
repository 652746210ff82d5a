"""Log-probabilities of answers, beside a pass over each prompt with its answer alone."""

from dataclasses import replace

import torch

from zu_lightning import EditableLM
from zu_lightning.attacks.answers import AnswerLogprobs, score_answers
from zu_lightning.facts.fact import Fact, Query
from zu_lightning.lm.tokens import tokenize


def alone(lm: EditableLM, query: Query) -> AnswerLogprobs:
    text = tokenize(lm.tokenizer, query)
    with torch.no_grad():
        log_p = lm.model(torch.tensor([text.ids])).logits[0].double().log_softmax(-1)[text.answer - 1 : -1]
    tokens = torch.tensor(text.ids[text.answer :])
    own, p = log_p.gather(1, tokens[:, None])[:, 0], log_p.exp()
    mean = (p * log_p).sum(1)
    deviation = (p * (log_p - mean[:, None]).square()).sum(1).sqrt()
    return AnswerLogprobs(own, log_p.argmax(1) == tokens, (own - mean) / deviation)


def test_shared_prompts_give_the_scores_of_each_answer_alone(lm: EditableLM, facts: list[Fact]) -> None:
    prompts = [fact.query for fact in facts[:4]]
    # One token, several tokens, one that begins like another, and one that goes on where another ends.
    answers = ["a", "the", "violin", "violinist and a nurse", "violinist and a cook", prompts[0].target]
    queries = [replace(query, target=answer) for query in prompts[:3] for answer in answers] + prompts * 2
    texts = {query: tokenize(lm.tokenizer, query) for query in queries}
    prompts_read = {tuple(text.ids[: text.answer]) for text in texts.values()}
    read = sum(map(len, prompts_read)) + sum(len(text.ids) - text.answer for text in texts.values())
    for batch_tokens in (1, 60, 2048):
        done: list[int] = []
        found = score_answers(lm, queries, batch_tokens, done.append)
        assert sum(done) == read
        for query, scores in zip(queries, found, strict=True):
            expected = alone(lm, query)
            assert torch.equal(scores.likeliest, expected.likeliest)
            torch.testing.assert_close(scores.log_probability, expected.log_probability, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(scores.standardized, expected.standardized, rtol=1e-3, atol=1e-3)
