"""The published procedure, one fact at a time: what our pipeline is compared with.

Written from the paper's description, with the numbers of the authors' release, which the paper does not print: 25 Adam
steps per fact and vector, all contexts and the KL prompt (read at the subject's last token, as in the release) in full
forward passes with logits everywhere, values for every layer, keys one fact at a time, two corpus passes per layer
(keys, and values against keys), and a dense solve for D. It shares the model and the tokens with our pipeline, and no
batching.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zu_lightning import EditableLM, Fact, LatentOptions, LayerProblem, ZeroUnlearn, solvers
from zu_lightning.lm.tokens import Prompt, TokenizedText, collate, tokenize


class Shift:
    """A trainable vector that is added to hidden states at their lookup tokens.

    Args:
        lookup: Index of the lookup token of each text; the first text is the bare prompt.
        scale_free: Whether the vector is measured in the size of the hidden state that it moves.

    Attributes:
        start: The bare prompt's hidden state, which the first forward pass finds.
        coordinates: What is trained, in units of ``unit``.
    """

    start: Tensor
    unit: Tensor
    coordinates: Tensor

    def __init__(self, lookup: Tensor, *, scale_free: bool) -> None:
        self.lookup, self.scale_free = lookup, scale_free
        self.rows = torch.arange(len(lookup), device=lookup.device)

    def __call__(self, hidden: Tensor) -> Tensor:
        """The hidden states (texts x length x width) with the vector added."""
        if not hasattr(self, "start"):
            self.start = hidden[0, self.lookup[0]].detach().float()
            self.unit = self.start.square().mean().sqrt() if self.scale_free else self.start.new_ones(())
            self.coordinates = torch.zeros_like(self.start, requires_grad=True)
        added = self.unit * self.coordinates.to(hidden.dtype)
        return hidden.index_put((self.rows, self.lookup), added, accumulate=True)

    @property
    def delta(self) -> Tensor:
        """The vector."""
        return self.unit * self.coordinates

    @torch.no_grad()
    def clamp(self, share: float) -> None:
        """Shorten the vector to a share of the length of ``start``."""
        size, limit = self.delta.norm(), share * self.start.norm()
        if size > limit:
            self.coordinates *= limit / size


def latent(
    lm: EditableLM, site: nn.Module, fact: Fact, answer: str, contexts: Sequence[str], options: LatentOptions
) -> Tensor:
    """The vector at the output of ``site`` (a layer or its projection) that makes the model give ``answer``."""
    prompts = [tokenize(lm.tokenizer, Prompt.about(fact, context=context, answer=answer)) for context in contexts]
    subject = fact.subject or fact.prompt
    essence = tokenize(lm.tokenizer, Prompt(f"{subject} is a", lookup_end=len(subject)))
    batch = collate([*prompts, essence], lm.tokenizer).to(lm.device)
    shift = Shift(batch.lookup, scale_free=True)
    original: Tensor | None = None
    optimizer: torch.optim.Adam | None = None
    for step in range(options.steps):
        with lm.shifted(site, shift, len(batch.lookup)):
            logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        log_probability = logits.float().log_softmax(-1)
        new = log_probability[-1, essence.lookup]
        original = new.detach() if original is None else original
        loss = surprise(log_probability, prompts) + options.kl_weight * (original.exp() * (original - new)).sum()
        if step:
            loss = loss + options.weight_decay * shift.delta.norm() / shift.start.square().sum()
        if loss < options.tolerance or step == options.steps - 1:
            break
        optimizer = optimizer or torch.optim.Adam([shift.coordinates], lr=options.learning_rate)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        shift.clamp(options.clamp)
    return shift.start + shift.delta.detach()


def surprise(log_probability: Tensor, prompts: Sequence[TokenizedText]) -> Tensor:
    """Mean negative log-probability of the answers' tokens in texts x length x vocabulary, then mean over prompts."""
    loss = torch.zeros((), device=log_probability.device)
    for row, text in enumerate(prompts):
        predicted = log_probability[row, text.answer - 1 : len(text.ids) - 1]
        tokens = torch.tensor(text.ids[text.answer :], device=log_probability.device)
        loss = loss - predicted.gather(1, tokens[:, None]).mean() / len(prompts)
    return loss


@torch.no_grad()
def key(lm: EditableLM, fact: Fact, layer: int, contexts: Sequence[str]) -> Tensor:
    """A fact's key, one context at a time: half the bare prompt's, half the mean of the others."""
    keys = []
    for context in contexts:
        text = tokenize(lm.tokenizer, Prompt.about(fact, context=context))
        (record,) = lm.record(collate([text], lm.tokenizer).to(lm.device), [lm.projections[layer]])
        keys.append(record.input[0, text.lookup].double())
    return (keys[0] + torch.stack(keys[1:]).mean(0)) / 2


@torch.no_grad()
def moments(lm: EditableLM, documents: Sequence[TokenizedText], layer: int, bar: Any) -> tuple[Tensor, Tensor]:
    """E[k k^T] and E[v k^T], each by its own pass, document by document; ``bar`` (tqdm) counts the tokens of both."""
    d_out, d_in = lm.weight(layer).shape
    sums = [torch.zeros(size, d_in, device=lm.device) for size in (d_in, d_out)]
    count = 0
    for of_values in (False, True):
        for document in documents:
            (record,) = lm.record(collate([document], lm.tokenizer).to(lm.device), [lm.projections[layer]])
            keys = record.input[0].float()
            sums[of_values] += (record.output[0].float() if of_values else keys).mT @ keys
            count += len(keys) * (not of_values)
            bar.update(len(keys))
    return sums[0] / count, sums[1] / count


def solve(weight: Tensor, problem: LayerProblem, value_moment: Tensor, rule: ZeroUnlearn) -> Tensor:
    """D W by Lemma 4.1, with every matrix formed; ``value_moment`` is E[v k^T], d_out x d_in."""
    W, K, R = weight.double(), problem.keys.double(), problem.residuals.double()
    C, WC = problem.second_moment.double(), value_moment.double()
    U = solvers.orthonormal_basis(problem.values.double())
    P = torch.eye(len(W), dtype=W.dtype, device=W.device) - U @ U.mT
    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    inner = rule.retain_weight * WC + rule.forget_weight * (W @ K + R) @ K.mT + rule.ridge * W
    M = rule.retain_weight * C + rule.forget_weight * K @ K.mT + rule.ridge * eye
    solution: Tensor = P @ (inner @ W.mT) @ torch.linalg.inv(W @ M @ W.mT) @ W
    return solution


@torch.no_grad()
def evaluation(lm: EditableLM, texts: Iterable[TokenizedText]) -> None:
    """Every query or document in its own forward pass."""
    for text in texts:
        lm.model(input_ids=torch.tensor([text.ids], device=lm.device), use_cache=False).logits.float().log_softmax(-1)
