"""Causal tracing: at which layers does the lookup token carry the answer? That is where an edit can work."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zu_lightning.facts import Fact
from zu_lightning.lm import EditableLM
from zu_lightning.metrics.functional import answer_scores
from zu_lightning.tokens import collate, tokenize_fact


@dataclass(frozen=True)
class LayerTrace:
    """Effect of the state after one layer at the lookup token, as mean probability of the answers.

    Attributes:
        layer: Index of the layer.
        corrupted: With noise on that state alone. Low: the answer goes through it.
        restored: With noise on the whole subject's embeddings, but that state as it was. High: it is enough.
    """

    layer: int
    corrupted: float
    restored: float


@dataclass(frozen=True)
class CausalTrace:
    """Mean probability of the answers under interventions.

    Attributes:
        clean: Without any.
        noisy: With noise on the subject's embeddings.
        layers: With interventions at each layer.
    """

    clean: float
    noisy: float
    layers: tuple[LayerTrace, ...]


@torch.no_grad()
def causal_trace(lm: EditableLM, facts: Sequence[Fact], *, noise: float = 3.0, seed: int = 0) -> CausalTrace:
    """Trace facts through the layers (after ROME, arXiv 2202.05262, Section 2; all facts in one batch).

    Args:
        lm: The model.
        facts: Facts with a subject that the model knows.
        noise: Standard deviation of the noise, in units of the root mean square of the state it is added to.
        seed: Seed of the noise.

    Returns:
        Probabilities averaged over facts.

    Raises:
        ValueError: A fact has no subject.
    """
    if any(fact.subject is None for fact in facts):
        raise ValueError("causal tracing needs facts with a subject: leave out those without.")
    batch = lm.to_device(
        collate([tokenize_fact(lm.tokenizer, fact, answer=fact.target) for fact in facts], lm.tokenizer)
    )
    everyone = torch.arange(len(facts), device=lm.device)
    embeddings = lm.model.get_input_embeddings()
    clean = [record.output[everyone, batch.lookup] for record in lm.record(batch, list(lm.layers))]
    subject = _subject_mask(lm, facts, batch.input_ids.shape[1])
    generator = torch.Generator().manual_seed(seed)

    def probability() -> float:
        rows, positions, tokens = batch.answer_positions()
        return answer_scores(lm.logits(batch, rows, positions), tokens, rows, len(facts)).probability.mean().item()

    def noise_like(state: Tensor) -> Tensor:
        scale = noise * state.float().square().mean(-1, keepdim=True).sqrt()
        return (scale * torch.randn(state.shape, generator=generator).to(state.device)).to(state.dtype)

    def replaced(value: Tensor) -> "_Replacement":
        return _Replacement(everyone, batch.lookup, value)

    embedded = embeddings(batch.input_ids)
    noisy = torch.where(subject[..., None], embedded + noise_like(embedded), embedded)
    traces = []
    base = probability()
    with lm.shifted(embeddings, lambda _: noisy):
        corrupted_everywhere = probability()
    for layer, state in enumerate(clean):
        with lm.shifted(lm.layers[layer], replaced(state + noise_like(state))):
            corrupted = probability()
        with lm.shifted(embeddings, lambda _: noisy), lm.shifted(lm.layers[layer], replaced(state)):
            traces.append(LayerTrace(layer, corrupted, probability()))
    return CausalTrace(base, corrupted_everywhere, tuple(traces))


@dataclass(frozen=True)
class _Replacement:
    """Puts ``value`` (rows x width) at one position of each row of a hidden state."""

    rows: Tensor
    positions: Tensor
    value: Tensor

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden.index_put((self.rows, self.positions), self.value)


def _subject_mask(lm: EditableLM, facts: Sequence[Fact], length: int) -> Tensor:
    """Which tokens overlap the subject, facts x length."""
    mask = torch.zeros(len(facts), length, dtype=torch.bool)
    for row, fact in zip(mask, facts, strict=True):
        start = fact.subject_end - len(fact.subject or "")
        offsets = lm.tokenizer(fact.prompt, return_offsets_mapping=True)["offset_mapping"]
        for i, (first, last) in enumerate(offsets):
            row[i] = first < fact.subject_end and last > start
    return mask.to(lm.device)
