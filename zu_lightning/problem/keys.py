"""Keys at the lookup token, and the problem of one layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zu_lightning.distributed import own_share, summed
from zu_lightning.facts.fact import Fact
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.suffix import after_shared_prefix
from zu_lightning.lm.tokens import TokenizedText, collate, tokenize_fact


@dataclass(frozen=True)
class LayerProblem:
    """What a rule is given to solve at one layer; facts are columns.

    Attributes:
        layer: Index of the layer.
        keys: K, d_in x n: inputs of the projection at the lookup token, averaged over contexts (the bare prompt weighs
            1/2, the prefixed ones 1/2 together).
        residuals: R, d_out x n: this layer's share of what is missing to the neutral targets.
        values: V, d_out x n: original-knowledge values.
        second_moment: C, d_in x d_in: uncentred mean of k k^T over retain tokens.
    """

    layer: int
    keys: Tensor
    residuals: Tensor
    values: Tensor
    second_moment: Tensor

    def scale_free(self) -> "LayerProblem":
        """The same problem in units that do not depend on the model.

        Keys have norm 1, values and residuals are divided by the norm of their fact's key (an update solves both
        problems alike), and the second moment is divided by its mean eigenvalue. A weight or a threshold then means
        the same in every model and layer.
        """
        norms = self.keys.norm(dim=0).clamp(min=torch.finfo(self.keys.dtype).tiny)
        return replace(
            self,
            keys=self.keys / norms,
            residuals=self.residuals / norms,
            values=self.values / norms,
            second_moment=self.second_moment / self.second_moment.diagonal().mean(),
        )


def batches(texts: Sequence[TokenizedText], max_tokens: int) -> Iterator[list[int]]:
    """Indices of texts of similar length, at most ``max_tokens`` tokens a batch after padding (one text at least)."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].ids))
    batch: list[int] = []
    for i in order:
        if batch and len(texts[i].ids) * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def lookup_keys(
    lm: EditableLM, facts: Sequence[Fact], layer: int, contexts: Sequence[str], *, max_tokens: int = 2048
) -> Tensor:
    """Keys of the facts at one layer, d_in x n, float64, averaged over contexts; the first context weighs half.

    Args:
        lm: The model, with the edits below ``layer`` already applied.
        facts: n facts.
        layer: Index of the layer.
        contexts: Texts put before the prompt, the first one empty.
        max_tokens: Most tokens a batch, padding included, contexts not.

    Returns:
        K, d_in x n.
    """
    prompts = [tokenize_fact(lm.tokenizer, fact) for fact in facts]
    rest = 0.5 / max(1, len(contexts) - 1)
    shares = torch.tensor([1.0 if len(contexts) == 1 else 0.5] + [rest] * (len(contexts) - 1), dtype=torch.float64)
    keys = torch.zeros(len(facts), lm.weight(layer).shape[1], dtype=torch.float64, device=lm.device)
    for indices in own_share(batches(prompts, max(1, max_tokens // len(contexts)))):
        texts = [tokenize_fact(lm.tokenizer, facts[i], context=context) for context in contexts for i in indices]
        batch = lm.to_device(collate(texts, lm.tokenizer))
        context = torch.arange(len(contexts), device=lm.device).repeat_interleave(len(indices))
        suffix = after_shared_prefix(lm, batch, context)
        (record,) = suffix.record(lm, [lm.projections[layer]])
        at_lookup = record.input[range(len(texts)), batch.lookup - suffix.start].double()
        keys[indices] = torch.einsum("c,cfk->fk", shares.to(lm.device), at_lookup.view(len(contexts), len(indices), -1))
    return summed(keys)[0].mT


def layer_outputs(lm: EditableLM, facts: Sequence[Fact], layer: int, *, max_tokens: int = 2048) -> Tensor:
    """Hidden states after a layer at the lookup tokens of the bare prompts, d_out x n, float64."""
    texts = [tokenize_fact(lm.tokenizer, fact) for fact in facts]
    outputs = torch.zeros(len(facts), lm.weight(layer).shape[0], dtype=torch.float64, device=lm.device)
    for indices in own_share(batches(texts, max_tokens)):
        batch = lm.to_device(collate([texts[i] for i in indices], lm.tokenizer))
        (record,) = lm.record(batch, [lm.layers[layer]])
        outputs[indices] = record.output[range(len(indices)), batch.lookup].double()
    return summed(outputs)[0].mT
