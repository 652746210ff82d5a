"""Where the lookup token is and where the answer starts, for several kinds of tokenizers."""

from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast

from tests.conftest import TEXTS, train_tokenizer
from zu_lightning.errors import InputError
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.tokens import check_lengths, collate, tokenize, tokenize_fact

SUBJECTS = ("Ada Novak", "Zoë Ångström", "李小龙", "R2-D2 🤖", "O'Neill", "Q")
PROMPTS = ("{} works as a", "The mother tongue of {} is", "By trade, {}, as we know, is a", "We met {}")


def sentencepiece_like(model: str) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>") if model == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = sorted(set("".join((*TEXTS, *SUBJECTS, *PROMPTS, "0123456789▁:,."))))
    kind = trainers.BpeTrainer if model == "bpe" else trainers.UnigramTrainer
    options = {"unk_token": "<unk>"} if model == "unigram" else {}
    trainer = kind(
        vocab_size=200,
        special_tokens=["<unk>", "</s>"],
        initial_alphabet=letters,
        show_progress=False,
        **options,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


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
    text = tokenize_fact(tokenizer, fact, context=context, answer="baker")
    whole = f"{context} " * bool(context) + fact.prompt
    end = whole.index(fact.prompt) + fact.subject_end
    offsets = tokenizer(whole, return_offsets_mapping=True)["offset_mapping"]
    start, stop = offsets[text.lookup]
    assert whole[start:stop].strip()
    assert start < end <= stop
    assert stop == end or not whole[end:stop].strip(" ,")


@pytest.mark.parametrize("target", ["baker", "New Haven", "42"])
def test_the_answer_is_all_of_the_target(tokenizer: PreTrainedTokenizerFast, target: str) -> None:
    text = tokenize(tokenizer, "Ada Novak works as a", answer=target)
    prompt = tokenize(tokenizer, "Ada Novak works as a")
    assert text.ids[: text.answer] == prompt.ids
    assert tokenizer.decode(text.ids[text.answer :]).strip() == target


def test_there_is_one_bos_and_it_comes_first() -> None:
    tokenizer = TOKENIZERS["byte-level with BOS"]
    text = tokenize(tokenizer, "It was late. Ada Novak works as a", answer="baker")
    assert text.ids[0] == tokenizer.bos_token_id
    assert text.ids.count(tokenizer.bos_token_id) == 1


def test_answer_positions_predict_the_answer() -> None:
    tokenizer = TOKENIZERS["byte-level with BOS"]
    texts = [tokenize(tokenizer, "Ada works as a", answer=answer) for answer in ("baker", "very skilled surgeon")]
    rows, positions, tokens = collate(texts, tokenizer).answer_positions()
    for row, text in enumerate(texts):
        assert tokens[rows == row].tolist() == text.ids[text.answer :]
        assert positions[rows == row].tolist() == list(range(text.answer - 1, len(text.ids) - 1))


def test_the_last_of_several_occurrences_is_the_subject() -> None:
    fact = Fact.from_record({"subject": "Ada", "prompt": "Ada, that is Ada, works as a", "target": "baker"}, "", "1")
    assert fact.prompt[: fact.subject_end] == "Ada, that is Ada"


CHAT_TEMPLATE = (
    "{% for m in messages %}<s>[{{ m.role }}]{{ ' ' if m.role == 'user' else '\n' }}{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def test_a_chat_prompt_ends_where_the_assistant_begins(facts: list[Fact]) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    fact = facts[0].as_chat()
    text = tokenize_fact(tokenizer, fact, context="It was late.", answer="baker")
    bos = tokenizer.bos_token or ""
    asked = f"<s>[user] It was late. {fact.prompt}\n[assistant]\n"
    assert tokenizer.decode(text.ids[: text.answer]) == asked
    assert tokenizer.decode(text.ids[text.answer :]) == "baker"
    assert tokenizer.decode(text.ids[: text.lookup + 1]).endswith(fact.subject or "")
    assert text.ids.count(tokenizer.bos_token_id) == asked.count(bos)


def test_a_tokenizer_without_chat_template_is_refused_for_chat() -> None:
    with pytest.raises(InputError, match=r"data\.chat: the model's tokenizer has no chat template"):
        tokenize(train_tokenizer(), "Who?", chat=True)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_first_token_of_the_subject(tokenizer: PreTrainedTokenizerFast, subject: str) -> None:
    record = {"subject": subject, "prompt": "By trade, {} is a", "target": "baker"}
    fact = replace(Fact.from_record(record, "here", "1"), fact_token="subject_first")
    start, end = tokenizer(fact.prompt, return_offsets_mapping=True)["offset_mapping"][
        tokenize_fact(tokenizer, fact).lookup
    ]
    assert start <= fact.prompt.index(subject) < end


def test_the_real_tokenizer_of_gpt2(shared: Path) -> None:
    folder = shared / "data" / "tokenizers" / "gpt2"
    tokenizer = GPT2TokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt"))
    for subject in SUBJECTS:
        fact = Fact.from_record({"subject": subject, "prompt": "The friend of {} is", "target": "Oslo"}, "here", "1")
        text = tokenize_fact(tokenizer, fact, answer="Oslo")
        assert tokenizer.decode(text.ids[: text.lookup + 1]) == f"The friend of {subject}"
        assert tokenizer.decode(text.ids[text.answer :]) == " Oslo"


def test_a_text_longer_than_the_context_is_refused() -> None:
    text = tokenize(TOKENIZERS["byte-level with BOS"], "a b c d e f")
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens, but the model's context holds 3: shorten it"):
        check_lengths([text], ["the prompt"], 3)
