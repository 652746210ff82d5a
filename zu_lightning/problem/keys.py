"""Keys and hidden states at the lookup tokens of facts."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zu_lightning.distributed import own_share, summed
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import after_shared_prefix
from zu_lightning.lm.tokens import collate, tokenize_fact

BATCH_TOKENS = 2048
"""Maximum number of tokens per batch, padding included, contexts not."""


def lookup_keys(lm: EditableLM, facts: Sequence[Fact], layer: int, contexts: Sequence[str]) -> Tensor:
    """Keys of the facts at one layer, averaged over contexts; the first context weighs half.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts to put before the prompt, the first one empty.

    Returns:
        K, d_in x n, float64.
    """
    prompts = [tokenize_fact(lm.tokenizer, fact) for fact in facts]
    rest = 0.5 / max(1, len(contexts) - 1)
    shares = torch.tensor([1.0 if len(contexts) == 1 else 0.5] + [rest] * (len(contexts) - 1), dtype=torch.float64)
    keys = torch.zeros(len(facts), lm.weight(layer).shape[1], dtype=torch.float64, device=lm.device)
    for indices in own_share(batches(prompts, max(1, BATCH_TOKENS // len(contexts)))):
        texts = [tokenize_fact(lm.tokenizer, facts[i], context=context) for context in contexts for i in indices]
        batch = collate(texts, lm.tokenizer).to(lm.device)
        context = torch.arange(len(contexts), device=lm.device).repeat_interleave(len(indices))
        suffix = after_shared_prefix(lm, batch, context)
        (record,) = suffix.record(lm, [lm.projections[layer]])
        at_lookup = record.input[range(len(texts)), batch.lookup - suffix.start].double()
        keys[indices] = torch.einsum("c,cfk->fk", shares.to(lm.device), at_lookup.view(len(contexts), len(indices), -1))
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
