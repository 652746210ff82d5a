"""What part a token plays in a prompt: causal tracing averages over tokens of the same role."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from transformers import PreTrainedTokenizerBase

from zu_lightning.facts.fact import Fact, FactToken
from zu_lightning.lm.tokens import TokenizedText, tokenize_fact
from zu_lightning.runtime.errors import InputError

Role = Literal["subject_first", "subject_middle", "subject_last", "after_first", "after_further", "last"]
"""The subject's first, middle, and last token; the first token after it, those that follow, and the prompt's last."""

ROLES: tuple[Role, ...] = get_args(Role)

ROLE_OF_LOOKUP: dict[FactToken, Role] = {
    "subject_first": "subject_first",
    "subject_last": "subject_last",
    "last": "last",
}
"""The role of a fact's lookup token."""


@dataclass(frozen=True)
class TracedText:
    """A prompt with its answer, and where its subject is.

    Attributes:
        text: The token ids.
        subject: Positions of the subject's tokens.
        roles: Role of every token of the prompt from the subject on. What is before the subject cannot change with it,
            since attention is causal.
    """

    text: TokenizedText
    subject: range
    roles: dict[int, Role]


def traced_text(tokenizer: PreTrainedTokenizerBase, fact: Fact) -> TracedText:
    """Tokenize a fact with its answer, and give its tokens their roles.

    A token has one role: the only token of a subject is its last one, and so is the last token of a prompt that ends
    with its subject.

    Raises:
        InputError: The fact has no subject.
    """
    if fact.subject is None:
        raise InputError("subject", None, f"fact {fact.id!r} needs one to be traced: add it, or leave the fact out.")
    first, text = (
        tokenize_fact(tokenizer, replace(fact, fact_token=token), answer=fact.target)
        for token in ("subject_first", "subject_last")
    )
    subject = range(min(first.lookup, text.lookup), text.lookup + 1)
    return TracedText(text, subject, _roles(subject, text.answer))


def _roles(subject: Sequence[int], end: int) -> dict[int, Role]:
    """Roles of the positions from the subject to the prompt's end; what is named later wins."""
    roles: dict[int, Role] = dict.fromkeys(range(subject[0], end), "after_further")
    roles[subject[-1] + 1] = "after_first"
    roles[end - 1] = "last"
    roles |= dict.fromkeys(subject, "subject_middle")
    roles[subject[0]] = "subject_first"
    roles[subject[-1]] = "subject_last"
    return {position: role for position, role in roles.items() if position < end}
