"""From text to token ids: where the lookup token is, where the answer starts, and padding.

Shapes: rows are texts, length is the number of tokens of the longest of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, islice
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from zu_lightning.facts.fact import Fact, Query
from zu_lightning.runtime.errors import InputError

AT_A_TIME = 1024
"""Number of texts that are tokenized at a time."""

END_OF_TEXT = "<eos>"
"""In place of an answer: the tokenizer's own end-of-text token."""


@dataclass(frozen=True)
class TokenizedText:
    """A text as token ids.

    Attributes:
        ids: Token ids, special tokens in front included.
        lookup: Index of the lookup token.
        answer: Index of the first token of the answer; ``len(ids)`` without one.
    """

    ids: list[int]
    lookup: int
    answer: int


@dataclass(frozen=True)
class PaddedTokens:
    """Input of a forward pass: texts padded on the right.

    Attributes:
        input_ids: rows x length.
        attention_mask: rows x length, 1 for tokens and 0 for padding.
    """

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class TokenBatch(PaddedTokens):
    """Texts padded on the right, where padding does not affect a causal model, with the positions to look at.

    Attributes:
        lookup: rows, index of each row's lookup token.
        answer: rows, index of the first token of each row's answer; the row's length without one.
        lengths: rows, number of tokens.
    """

    lookup: Tensor
    answer: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        """The batch on a device."""
        return TokenBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def select(self, rows: Tensor) -> "TokenBatch":
        """Some rows, by their indices, without padding that none of them needs."""
        length = int(self.lengths[rows].max())
        return TokenBatch(
            input_ids=self.input_ids[rows, :length],
            attention_mask=self.attention_mask[rows, :length],
            lookup=self.lookup[rows],
            answer=self.answer[rows],
            lengths=self.lengths[rows],
        )

    @property
    def read(self) -> Tensor:
        """rows, number of tokens that a model has to read: no prediction after an answer's last token is used."""
        return torch.where(self.without_answer, self.lengths, self.lengths - 1)

    @property
    def without_answer(self) -> Tensor:
        """rows, whether a row has no answer."""
        return self.answer == self.lengths

    def answer_positions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row and position of each logit that predicts an answer token, and the token's id (each: answer tokens)."""
        index = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        predicts = (index >= self.answer[:, None] - 1) & (index < self.lengths[:, None] - 1)
        rows, positions = predicts.nonzero(as_tuple=True)
        return rows, positions, self.input_ids[rows, positions + 1]


def resolved_answer(tokenizer: PreTrainedTokenizerBase, answer: str) -> str:
    """A neutral answer for a tokenizer: ``<eos>`` becomes its end-of-text token, all else is unchanged.

    Raises:
        InputError: ``<eos>`` is asked for, but the tokenizer has no end-of-text token.
    """
    if answer != END_OF_TEXT:
        return answer
    if tokenizer.eos_token is None:
        remedy = "the model's tokenizer has no end-of-text token: write out what the model should answer."
        raise InputError("neutral_target", answer, remedy)
    return str(tokenizer.eos_token)


class Prompt(NamedTuple):
    """A prompt for the model, with or without an answer.

    Attributes:
        prompt: Text without trailing space.
        answer: Joined to the prompt by one space, or directly if it is a special token, such as the end of the text.
        lookup_end: The lookup token is the one that holds the character before this one; the prompt's last token by
            default.
        chat: Whether the prompt is a user's message, given through the tokenizer's chat template; the answer then
            follows where the assistant begins, joined as the template joins it.
    """

    prompt: str
    answer: str = ""
    lookup_end: int | None = None
    chat: bool = False

    @classmethod
    def about(cls, fact: Fact, *, context: str = "", answer: str = "") -> "Prompt":
        """A fact's prompt after a context, with the fact's lookup token."""
        prefix = f"{context} " if context else ""
        return cls(prefix + fact.prompt, answer, len(prefix) + fact.lookup_end, fact.chat)

    @classmethod
    def of(cls, text: "Text") -> "Prompt":
        """A plain text, a fact's prompt with its lookup token, or a query's prompt with its answer."""
        match text:
            case Prompt():
                return text
            case Fact():
                return cls.about(text)
            case Query():
                return cls(text.prompt, text.target, chat=text.chat)
            case _:
                return cls(text)


Text = str | Fact | Query | Prompt
"""What can be tokenized, see :meth:`Prompt.of`."""


def tokenize_all(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[Text], max_length: int | None = None
) -> list[TokenizedText]:
    """Tokenize prompts together with their answers, so that no token is split or spaced differently.

    Many at a time: a fast tokenizer then takes half the time, and uses several threads.

    Args:
        tokenizer: A fast tokenizer.
        texts: Plain texts, facts (their prompts), queries (prompts with answers), or prompts.
        max_length: Maximum number of tokens of a text to keep; all by default.

    Returns:
        For each text its token ids, with the positions of the lookup token and the answer.

    Raises:
        InputError: ``chat`` is asked for, but the tokenizer's template has no place for the prompt.
    """
    tokenized: list[TokenizedText] = []
    for chat, group in groupby(map(Prompt.of, texts), key=lambda prompt: prompt.chat):
        while chunk := list(islice(group, AT_A_TIME)):
            whole = [_with_answer(tokenizer, prompt) for prompt in chunk]
            encoded = tokenizer(
                [text for text, _, _ in whole],
                return_offsets_mapping=True,
                truncation=max_length is not None,
                max_length=max_length,
                add_special_tokens=not chat,  # the template has its own
            )
            tokens = zip(whole, encoded["input_ids"], encoded["offset_mapping"], strict=True)
            tokenized += (_located(tokenizer, ends, ids, offsets) for (_, *ends), ids, offsets in tokens)
    return tokenized


def tokenize(tokenizer: PreTrainedTokenizerBase, text: Text, max_length: int | None = None) -> TokenizedText:
    """Tokenize one text, see :func:`tokenize_all`."""
    return tokenize_all(tokenizer, [text], max_length)[0]


def _with_answer(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> tuple[str, int, int]:
    """The whole text, and the ends of its lookup token and its prompt in characters."""
    text, answer = prompt.prompt, prompt.answer
    lookup_end = len(text) if prompt.lookup_end is None else prompt.lookup_end
    if prompt.chat:
        text = chat_text(tokenizer, prompt.prompt)
        lookup_end += text.rindex(prompt.prompt)
        by_space = f"{text} {answer}" in chat_text(tokenizer, prompt.prompt, answer)
    else:
        by_space = answer not in tokenizer.all_special_tokens
    return f"{text} {answer}" if answer and by_space else text + answer, lookup_end, len(text)


def _located(
    tokenizer: PreTrainedTokenizerBase, ends: Sequence[int], ids: list[int], offsets: list[tuple[int, int]]
) -> TokenizedText:
    """Locate lookup token and answer among a text's tokens; ``ends`` are those of :func:`_with_answer`."""
    lookup_end, prompt_end = ends
    while len(ids) > 1 and ids[-1] == tokenizer.eos_token_id and offsets[-1][0] == offsets[-1][1]:
        # Some tokenizers append an end-of-text token: the model would have to continue after the end.
        ids, offsets = ids[:-1], offsets[:-1]
    # Byte-level tokenizers may split a character over several tokens: the last of them ends the subject.
    lookup = max((i for i, (start, end) in enumerate(offsets) if start < lookup_end <= end), default=len(ids) - 1)
    first = next((i for i, (_, end) in enumerate(offsets) if end > prompt_end), len(ids))
    return TokenizedText(ids, lookup, first)


def chat_text(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str = "") -> str:
    """A user's message in the chat template, up to the start of the assistant's turn, or with the answer.

    Raises:
        InputError: There is no template, or it does not hold the message as it is.
    """
    if not tokenizer.chat_template:
        raise InputError("chat", True, "the model's tokenizer has no chat template: leave it off, or use a chat model.")
    messages = [{"role": "user", "content": prompt}]
    messages += [{"role": "assistant", "content": answer}] if answer else []
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=not answer))
    if prompt not in text:
        raise InputError("chat", True, f"the model's chat template changes the message {prompt[:60]!r}: leave it off.")
    return text


def collate(texts: Sequence[TokenizedText], tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
    """Pad texts on the right into one batch; the tokenizer needs no padding token, since padding is masked."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    lengths = torch.tensor([len(text.ids) for text in texts])
    length = int(lengths.max())
    return TokenBatch(
        input_ids=torch.tensor([text.ids + [pad] * (length - len(text.ids)) for text in texts]),
        attention_mask=(torch.arange(length) < lengths[:, None]).long(),
        lookup=torch.tensor([text.lookup for text in texts]),
        answer=torch.tensor([text.answer for text in texts]),
        lengths=lengths,
    )


def check_lengths(texts: Sequence[TokenizedText], names: Sequence[str], limit: int) -> None:
    """Refuse texts that do not fit into the model's context.

    Args:
        texts: Texts for the model.
        names: Name of each text, for messages.
        limit: Length of the model's context in tokens.

    Raises:
        InputError: A text has more tokens than ``limit``.
    """
    for text, name in zip(texts, names, strict=True):
        if len(text.ids) > limit:
            remedy = f"the model's context holds {limit}: shorten the text."
            raise InputError(f"number of tokens of {name}", len(text.ids), remedy)
