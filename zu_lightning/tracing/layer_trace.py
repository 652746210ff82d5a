"""Causal tracing at the lookup token: the layers whose states carry the answer, where an edit can work."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from zu_lightning.evaluation.functional import answer_scores
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import Prompt, collate, tokenize_all


@dataclass(frozen=True)
class LayerTrace:
    """Effect of the state after one layer at the lookup token, as mean probability of the answers.

    Attributes:
        layer: Index of the layer.
        corrupted: With another fact's state in its place. If it is low, the state is necessary.
        restored: With another fact's lookup token in the input, but this state restored. If it is high, the state is
            sufficient.
    """

    layer: int
    corrupted: float
    restored: float


@dataclass(frozen=True)
class CausalTrace:
    """Mean probability of the answers under interventions.

    Attributes:
        clean: Without any.
        corrupted: With another fact's lookup token in the input.
        layers: With interventions at each layer.
    """

    clean: float
    corrupted: float
    layers: tuple[LayerTrace, ...]


@torch.no_grad()
def causal_trace(lm: EditableLM, facts: Sequence[Fact]) -> CausalTrace:
    """Trace facts through the layers by interchange (after ROME, arXiv 2202.05262, Section 2, which uses noise).

    The embedding or state of each fact is replaced by that of the fact before it.

    Args:
        lm: The model.
        facts: At least two facts that the model knows, about various subjects; all go into one batch.

    Returns:
        Probabilities averaged over facts.

    Raises:
        ValueError: There are fewer than two facts.
    """
    if len(facts) < 2:
        raise ValueError(f"causal tracing puts one fact's state into another's prompt, but `facts` has {len(facts)}.")
    texts = tokenize_all(lm.tokenizer, [Prompt.about(fact, answer=fact.target) for fact in facts])
    batch = collate(texts, lm.tokenizer).to(lm.device)
    rows = torch.arange(len(facts), device=lm.device)
    answer, positions, tokens = batch.answer_positions()
    embeddings: nn.Module = lm.model.get_input_embeddings()
    embedded, *states = (record.output[rows, batch.lookup] for record in lm.record(batch, [embeddings, *lm.layers]))

    def put(state: Tensor, hidden: Tensor) -> Tensor:
        return hidden.index_put((rows, batch.lookup), state)

    def probability(*interventions: tuple[nn.Module, Tensor]) -> float:
        """Mean probability of the answers with other states put into modules at the lookup tokens."""
        with ExitStack() as stack:
            for module, state in interventions:
                stack.enter_context(lm.shifted(module, partial(put, state), len(facts)))
            logits = lm.logits(batch, answer, positions, watched=[module for module, _ in interventions])
        return answer_scores(logits, tokens, answer, len(facts)).probability.mean().item()

    corrupted_input = (embeddings, embedded.roll(1, 0))
    return CausalTrace(
        clean=probability(),
        corrupted=probability(corrupted_input),
        layers=tuple(
            LayerTrace(
                layer,
                corrupted=probability((module, state.roll(1, 0))),
                restored=probability(corrupted_input, (module, state)),
            )
            for layer, (module, state) in enumerate(zip(lm.layers, states, strict=True))
        ),
    )
