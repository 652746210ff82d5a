"""Where the lookup token is and where the answer starts, for several kinds of tokenizers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.conftest import TEXTS, train_tokenizer
from zu_lightning import Fact, InputError, Query
from zu_lightning.lm.tokens import Prompt, TokenBatch, check_lengths, collate, resolved_answer, tokenize

SUBJECTS = ("Ada Novak", "Zoë Ångström", "李小龙", "R2-D2 🤖", "O'Neill", "Q")
PROMPTS = ("{} works as a", "The mother tongue of {} is", "By trade, {}, as we know, is a", "We met {}")


def sentencepiece_like(model: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>") if model == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = sorted(set("".join((*TEXTS, *SUBJECTS, *PROMPTS, "0123456789▁:,."))))
    options: dict[str, Any] = {
        "vocab_size": 200, "special_tokens": ["<unk>", "</s>"], "initial_alphabet": letters, "show_progress": False,
    }  # fmt: skip
    bpe = model == "bpe"
    trainer = trainers.BpeTrainer(**options) if bpe else trainers.UnigramTrainer(**options, unk_token="<unk>")
    tokenizer.train_from_iterator(TEXTS, trainer)
    special: dict[str, Any] = {"unk_token": "<unk>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


TOKENIZERS = {
    "byte-level with BOS": train_tokenizer(),
    "byte-level without BOS": train_tokenizer(bos=False),
    "sentencepiece BPE": sentencepiece_like("bpe"),
    "sentencepiece Unigram": sentencepiece_like("unigram"),
}


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


@pytest.mark.parametrize("context", ["", "It was late.", "Ada Novak said:"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_lookup_token_ends_the_subject(
    tokenizer: PreTrainedTokenizerFast, subject: str, prompt: str, context: str
) -> None:
    fact = Fact.from_record({"subject": subject, "prompt": prompt, "target": "baker"}, "here", "1")
    text = tokenize(tokenizer, Prompt.about(fact, context=context, answer="baker"))
    whole = f"{context} " * bool(context) + fact.prompt
    end = whole.index(fact.prompt) + fact.subject_end
    offsets = tokenizer(whole, return_offsets_mapping=True)["offset_mapping"]
    start, stop = offsets[text.lookup]
    assert whole[start:stop].strip()
    assert start < end <= stop
    assert stop == end or not whole[end:stop].strip(" ,")


@pytest.mark.parametrize("target", ["baker", "New Haven", "42"])
def test_the_answer_is_all_of_the_target(tokenizer: PreTrainedTokenizerFast, target: str) -> None:
    text = tokenize(tokenizer, Prompt("Ada Novak works as a", target))
    prompt = tokenize(tokenizer, "Ada Novak works as a")
    assert text.ids[: text.answer] == prompt.ids
    assert str(tokenizer.decode(text.ids[text.answer :])).strip() == target


def test_a_special_token_is_joined_to_the_prompt_without_space() -> None:
    tokenizer = TOKENIZERS["byte-level with BOS"]
    prompt = tokenize(tokenizer, "Ada Novak works as a")
    text = tokenize(tokenizer, Prompt("Ada Novak works as a", "</s>"))
    assert text.ids == [*prompt.ids, tokenizer.eos_token_id]
    assert text.ids[0] == tokenizer.bos_token_id
    assert text.ids.count(tokenizer.bos_token_id) == 1
    assert text.answer == len(prompt.ids)


def test_a_tokenizer_that_closes_every_text_does_not_close_ours() -> None:
    tokenizer = train_tokenizer()
    closing = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.backend_tokenizer.post_processor = closing
    assert tokenizer("Ada")["input_ids"][-1] == tokenizer.eos_token_id
    for answer in ("", "baker"):
        expected = tokenize(TOKENIZERS["byte-level with BOS"], Prompt("Ada works as a", answer))
        assert tokenize(tokenizer, Prompt("Ada works as a", answer)) == expected


def test_a_text_is_cut_to_the_length_asked_for() -> None:
    tokenizer = TOKENIZERS["byte-level with BOS"]
    whole = tokenize(tokenizer, TEXTS[2])
    cut = tokenize(tokenizer, TEXTS[2], max_length=5)
    assert cut.ids == whole.ids[:5]
    assert (cut.lookup, cut.answer) == (4, 5)
    assert tokenize(tokenizer, TEXTS[2]) == whole  # the tokenizer has not been told to cut from now on


def test_answer_positions_predict_the_answer() -> None:
    tokenizer = TOKENIZERS["byte-level with BOS"]
    texts = [tokenize(tokenizer, Prompt("Ada works as a", answer)) for answer in ("baker", "very skilled surgeon")]
    rows, positions, tokens = collate(texts, tokenizer).answer_positions()
    for row, text in enumerate(texts):
        assert tokens[rows == row].tolist() == text.ids[text.answer :]
        assert positions[rows == row].tolist() == list(range(text.answer - 1, len(text.ids) - 1))


CHAT_TEMPLATE = (
    "{% for m in messages %}<s>[{{ m.role }}]{{ ' ' if m.role == 'user' else '\n' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def test_a_chat_prompt_ends_where_the_assistant_begins(facts: list[Fact]) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    fact = facts[0].as_chat()
    text = tokenize(tokenizer, Prompt.about(fact, context="It was late.", answer="baker"))
    bos = tokenizer.bos_token or ""
    asked = f"<s>[user] It was late. {fact.prompt}\n[assistant]\n"
    assert tokenizer.decode(text.ids[: text.answer]) == asked
    assert tokenizer.decode(text.ids[text.answer :]) == "baker"
    assert str(tokenizer.decode(text.ids[: text.lookup + 1])).endswith(str(fact.subject))
    assert text.ids.count(tokenizer.bos_token_id) == asked.count(bos)


def test_a_chat_query_is_tokenized_as_a_chat_prompt() -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    expected = tokenize(tokenizer, Prompt("Who is Ada?", "baker", chat=True))
    assert tokenize(tokenizer, Query("Who is Ada?", "baker", chat=True)) == expected
    assert tokenize(tokenizer, Query("Who is Ada?", "baker")) == tokenize(tokenizer, Prompt("Who is Ada?", "baker"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "chat is True: the model's tokenizer has no chat template"),
        ("{{ messages[0].content | upper }}", "chat is True: the model's chat template changes the message 'Who?'"),
    ],
)
def test_a_template_without_a_place_for_the_prompt_is_refused(template: str | None, message: str) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError) as refused:
        tokenize(tokenizer, Prompt("Who?", chat=True))
    assert message in str(refused.value)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_first_token_of_the_subject(tokenizer: PreTrainedTokenizerFast, subject: str) -> None:
    record = {"subject": subject, "prompt": "By trade, {} is a", "target": "baker"}
    fact = replace(Fact.from_record(record, "here", "1"), fact_token="subject_first")
    start, end = tokenizer(fact.prompt, return_offsets_mapping=True)["offset_mapping"][tokenize(tokenizer, fact).lookup]
    assert start <= fact.prompt.index(subject) < end


def test_the_real_tokenizer_of_gpt2(shared: Path) -> None:
    from transformers import GPT2TokenizerFast  # type: ignore[attr-defined]

    folder = shared / "data" / "tokenizers" / "gpt2"
    tokenizer = GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for subject in SUBJECTS:
        fact = Fact.from_record({"subject": subject, "prompt": "The friend of {} is", "target": "Oslo"}, "here", "1")
        text = tokenize(tokenizer, Prompt.about(fact, answer="Oslo"))
        assert tokenizer.decode(text.ids[: text.lookup + 1]) == f"The friend of {subject}"
        assert tokenizer.decode(text.ids[text.answer :]) == " Oslo"


def test_a_text_longer_than_the_context_is_refused_by_its_name() -> None:
    texts = [tokenize(TOKENIZERS["byte-level with BOS"], text) for text in ("a", "a b c d e f")]
    lengths = [len(text.ids) for text in texts]
    check_lengths(texts, ["one", "two"], lengths[1])
    with pytest.raises(InputError, match=rf"number of tokens of two is {lengths[1]}: .* holds {lengths[0]}:"):
        check_lengths(texts, ["one", "two"], lengths[0])


@pytest.fixture
def batch() -> TokenBatch:
    """A short text without and a long text with an answer."""
    tokenizer = TOKENIZERS["byte-level with BOS"]
    texts = [tokenize(tokenizer, "Ada"), tokenize(tokenizer, Prompt("Ada Novak works as a", "very skilled surgeon"))]
    return collate(texts, tokenizer)


def test_a_batch_is_padded_on_the_right(batch: TokenBatch) -> None:
    short, long = batch.lengths.tolist()
    assert batch.input_ids.shape == batch.attention_mask.shape == (2, long)
    assert batch.attention_mask.tolist() == [[1] * short + [0] * (long - short), [1] * long]
    assert (batch.input_ids[0, short:] == TOKENIZERS["byte-level with BOS"].pad_token_id).all()


def test_an_answers_last_token_need_not_be_read(batch: TokenBatch) -> None:
    assert batch.without_answer.tolist() == [True, False]
    assert (batch.lengths - batch.read).tolist() == [0, 1]


def test_selected_rows_have_no_more_padding_than_they_need(batch: TokenBatch) -> None:
    for row in (0, 1):
        alone = batch.select(torch.tensor([row]))
        assert alone.input_ids.shape == (1, int(batch.lengths[row]))
        assert alone.attention_mask.all()
        assert (alone.lookup[0], alone.answer[0]) == (batch.lookup[row], batch.answer[row])
    swapped = batch.select(torch.tensor([1, 0]))
    assert torch.equal(swapped.input_ids, batch.input_ids[[1, 0]])


def test_the_end_of_a_text_is_asked_for_by_one_name_whatever_the_tokenizer() -> None:
    tokenizer = train_tokenizer()
    assert resolved_answer(tokenizer, "<eos>") == "</s>"
    assert resolved_answer(tokenizer, "unknown") == "unknown"
    text = tokenize(tokenizer, Prompt("Ada works as a", resolved_answer(tokenizer, "<eos>")))
    assert text.ids[text.answer :] == [tokenizer.eos_token_id]


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    tokenizer = train_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(
        InputError, match="neutral_target is '<eos>': the model's tokenizer has no end-of-text"
    ) as refused:
        resolved_answer(tokenizer, "<eos>")
    assert refused.value.parameter == "neutral_target"
