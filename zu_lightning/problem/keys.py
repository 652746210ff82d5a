"""Keys and hidden states at the lookup tokens of facts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from zu_lightning.distributed import own_share, summed
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import after_shared_prefix
from zu_lightning.lm.tokens import collate, tokenize_fact
from zu_lightning.problem.phrasings import Phrasings

BATCH_TOKENS = 2048
"""Maximum number of tokens per batch, padding included, contexts not."""


def lookup_keys(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    contexts: Sequence[str],
    rephrased: Mapping[str, Sequence[Fact]] | None = None,
) -> Tensor:
    """Keys of the facts at one layer, averaged over the ways to put them; the bare prompt weighs half.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts to put before the prompt, the first one empty.
        rephrased: For a fact's id, the fact in other words, which count like contexts.

    Returns:
        K, d_in x n, float64.
    """
    phrasings = Phrasings(contexts, rephrased or {})
    prompts = [tokenize_fact(lm.tokenizer, fact) for fact in facts]
    ways = max((len(phrasings.of(fact)) for fact in facts), default=1)
    keys = torch.zeros(len(facts), lm.weight(layer).shape[1], dtype=torch.float64, device=lm.device)
    for indices in own_share(batches(prompts, max(1, BATCH_TOKENS // ways))):
        put = phrasings.rows([facts[i] for i in indices])
        texts = [tokenize_fact(lm.tokenizer, one.fact, context=one.context) for one in put]
        batch = collate(texts, lm.tokenizer).to(lm.device)
        number, fact = torch.tensor([(one.number, one.position) for one in put], device=lm.device).T
        suffix = after_shared_prefix(lm, batch, number)
        (record,) = suffix.record(lm, [lm.projections[layer]])
        at_lookup = record.input[range(len(texts)), batch.lookup - suffix.start].double()
        rest = fact.bincount()[fact] - 1
        share = torch.where(number == 0, torch.where(rest == 0, 1.0, 0.5), 0.5 / rest).double()
        found = torch.zeros(len(indices), keys.shape[1], dtype=torch.float64, device=lm.device)
        keys[indices] = found.index_add(0, fact, share[:, None] * at_lookup)
    return summed(keys)[0].mT


def layer_outputs(lm: EditableLM, facts: Sequence[Fact], layer: int) -> Tensor:
    """Hidden states after a layer at the lookup tokens of the bare prompts, d_out x n, float64."""
    texts = [tokenize_fact(lm.tokenizer, fact) for fact in facts]
    outputs = torch.zeros(len(facts), lm.weight(layer).shape[0], dtype=torch.float64, device=lm.device)
    for indices in own_share(batches(texts, BATCH_TOKENS)):
        batch = collate([texts[i] for i in indices], lm.tokenizer).to(lm.device)
        (record,) = lm.record(batch, [lm.layers[layer]])
        outputs[indices] = record.output[range(len(indices)), batch.lookup].double()
    return summed(outputs)[0].mT
