"""What a model knows: the facts whose answers greedy decoding gives, how probable they are, and by what margin."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zu_lightning.evaluation.functional import answer_scores
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.relations import relations_of
from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import check_lengths, tokenize_all
from zu_lightning.runtime.distributed import all_reduce, process
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor

log = logging.getLogger(__name__)

RELATIONS_NAMED = 10
"""Number of relations that the log names."""


@dataclass(frozen=True)
class Certainty:
    """How sure a model is of a fact's answer.

    Attributes:
        probability: Probability of the whole answer, 0..1.
        margin: How much likelier each token of the answer is than the likeliest other token, in nats, at the token
            where this is least; positive if and only if greedy decoding gives the answer.
    """

    probability: float
    margin: float

    def answers(self, at_least: float) -> bool:
        """Whether greedy decoding gives the answer, with a probability of ``at_least``."""
        return self.margin > 0 and self.probability >= at_least


@torch.no_grad()
def measure_known(
    lm: EditableLM,
    facts: Sequence[Fact],
    *,
    batch_tokens: int = BATCH_TOKENS,
    cache: Path | None = None,
    monitor: Monitor | None = None,
) -> dict[str, Certainty]:
    """How sure a model is of each fact's answer.

    All processes must call this; each gets the whole result, which does not depend on their number.

    Args:
        lm: The model.
        facts: Facts; a prompt with its answer that several of them share is processed once.
        batch_tokens: Maximum number of tokens per batch, padding included.
        cache: Folder in which runs share results; ``None`` for no cache.
        monitor: Shows progress.

    Returns:
        By the id of each fact.

    Raises:
        InputError: A prompt with its answer is longer than the model's context.
    """
    queries = list(dict.fromkeys(fact.query for fact in facts))
    texts = tokenize_all(lm.tokenizer, queries)
    names = [f"the prompt {query.prompt[:60]!r}... with its answer" for query in queries]
    check_lengths(texts, names, lm.context_length)

    def measured() -> Tensor:
        found = torch.zeros(len(queries), 2, dtype=torch.float64, device=lm.device)
        with (monitor or Monitor()).bar("Known facts", len(queries), "facts") as bar:
            for indices, batch in batched(lm, texts, batch_tokens, sharded=True):
                rows, positions, tokens = batch.answer_positions()
                scores = answer_scores(lm.logits(batch, rows, positions), tokens, rows, len(indices))
                found[indices] = torch.stack([scores.probability, scores.margin], 1)
                bar.update(len(indices) * process()[1])
        return all_reduce(found)[0]

    rows = open_cache(cache, lm).tensor("known", measured, *queries).tolist()
    by_query = {query: Certainty(*row) for query, row in zip(queries, rows, strict=True)}
    return {fact.id: by_query[fact.query] for fact in facts}


def answered_facts(facts: Sequence[Fact], certainties: Mapping[str, Certainty], at_least: float = 0.0) -> list[Fact]:
    """The facts that a model answers, in order; the log says how many of each relation.

    Args:
        facts: Facts.
        certainties: How sure the model is of each of them, and perhaps of others (:func:`measure_known`).
        at_least: Minimum probability of an answer, 0..1, besides greedy decoding giving it.
    """
    answered = [fact for fact in facts if certainties[fact.id].answers(at_least)]
    # A prompt in place of a name is quoted.
    relations = (fact.relation or f'"{name}"' for fact, name in zip(facts, relations_of(facts), strict=True))
    names = dict(zip((fact.id for fact in facts), relations, strict=True))
    found, all_of = (Counter(names[fact.id] for fact in some) for some in (answered, facts))
    named = [f"{name} {count:,} of {all_of[name]:,}" for name, count in found.most_common(RELATIONS_NAMED)]
    if len(all_of) > len(named) > 0:
        named.append(f"and {len(all_of) - len(named)} more relations")
    log.info(
        "the model answers %s of %s facts%s%s", f"{len(answered):,}", f"{len(facts):,}",
        f" (with at least probability {at_least:g})" if at_least else "", ": " + ", ".join(named) if named else "",
    )  # fmt: skip
    return answered


def known_facts(
    lm: EditableLM,
    facts: Sequence[Fact],
    *,
    at_least: float = 0.0,
    batch_tokens: int = BATCH_TOKENS,
    cache: Path | None = None,
    monitor: Monitor | None = None,
) -> list[Fact]:
    """The facts that a model answers: what ``Request.draw(facts, corpus, answered=...)`` draws from.

    Args:
        lm: The model.
        facts: Facts.
        at_least: Minimum probability of an answer, 0..1, besides greedy decoding giving it.
        batch_tokens: Maximum number of tokens per batch, padding included.
        cache: Folder in which runs share results; ``None`` for no cache.
        monitor: Shows progress.

    Returns:
        They, in order.

    Raises:
        InputError: ``at_least`` is no probability, or a prompt with its answer is longer than the model's context.
    """
    check_at_least(at_least)
    certainties = measure_known(lm, facts, batch_tokens=batch_tokens, cache=cache, monitor=monitor)
    return answered_facts(facts, certainties, at_least)


def check_at_least(at_least: float) -> None:
    """Refuse what is no probability.

    Raises:
        InputError: See above.
    """
    if not 0 <= at_least <= 1:
        raise InputError("at_least", at_least, "it is a probability: give a number from 0 to 1.")
