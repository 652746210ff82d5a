"""The published procedure, one fact at a time: what our pipeline is measured against.

Written from the paper's description: 25 Adam steps a fact and vector, every context and the KL prompt in one full
forward pass with logits everywhere, values for every layer, keys one fact at a time, two corpus passes a layer (keys,
and values against keys), a dense solve for D. All of it runs on the batching-free path of the same model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from zu_lightning import EditableLM, Fact, LatentOptions, ZeroUnlearn, solvers
from zu_lightning.lm.tokens import collate, tokenize, tokenize_fact, tokenize_query


def latent(
    lm: EditableLM, fact: Fact, answer: str, layer: int, contexts: Sequence[str], options: LatentOptions, inside: bool
) -> Tensor:
    """The vector that makes the model emit ``answer``: at the projection's output if ``inside``, else the layer's."""
    prompts = [tokenize_fact(lm.tokenizer, fact, context=context, answer=answer) for context in contexts]
    subject = fact.subject or fact.prompt
    essence = tokenize(lm.tokenizer, f"{subject} is a", lookup_end=len(subject))
    texts = [*prompts, essence]
    batch = lm.to_device(collate(texts, lm.tokenizer))
    site = lm.projections[layer] if inside else lm.layers[layer]
    rows = torch.arange(len(texts), device=lm.device)
    delta: Tensor | None = None
    start: Tensor | None = None
    original: Tensor | None = None

    def add(hidden: Tensor) -> Tensor:
        nonlocal delta, start
        if start is None:
            start = hidden[0, prompts[0].lookup].detach().float()
            delta = torch.zeros_like(start, requires_grad=True)
        return hidden.index_put((rows, batch.lookup), unit() * delta.to(hidden.dtype), accumulate=True)

    def unit() -> Tensor:
        return start.square().mean().sqrt() if options.scale_free else start.new_ones(())

    optimizer: torch.optim.Adam | None = None
    for step in range(options.steps):
        with lm.shifted(site, add):
            logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        log_probability = logits.float().log_softmax(-1)
        loss = torch.zeros((), device=lm.device)
        for row, text in enumerate(prompts):
            predicted = log_probability[row, text.answer - 1 : len(text.ids) - 1]
            tokens = torch.tensor(text.ids[text.answer :], device=lm.device)
            loss = loss - predicted.gather(1, tokens[:, None]).mean() / len(prompts)
        new = log_probability[-1, len(essence.ids) - 1]
        original = new.detach() if original is None else original
        loss = loss + options.kl_weight * (original.exp() * (original - new)).sum()
        if step:
            loss = loss + options.weight_decay * (unit() * delta).norm() / start.square().sum()
        if loss < options.tolerance or step == options.steps - 1:
            break
        optimizer = optimizer or torch.optim.Adam([delta], lr=options.learning_rate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            size, limit = (unit() * delta).norm(), options.clamp * start.norm()
            if size > limit:
                delta *= limit / size
    return start + unit() * delta.detach()


@torch.no_grad()
def key(lm: EditableLM, fact: Fact, layer: int, contexts: Sequence[str]) -> Tensor:
    """A fact's key, one context at a time: half the bare prompt's, half the mean of the others."""
    keys = []
    for context in contexts:
        text = tokenize_fact(lm.tokenizer, fact, context=context)
        (record,) = lm.record(lm.to_device(collate([text], lm.tokenizer)), [lm.projections[layer]])
        keys.append(record.input[0, text.lookup].double())
    return (keys[0] + torch.stack(keys[1:]).mean(0)) / 2


@torch.no_grad()
def moments(lm: EditableLM, texts: Sequence[str], layer: int) -> tuple[Tensor, Tensor]:
    """E[k k^T] and E[v k^T], each by a pass of its own, a document at a time."""
    d_out, d_in = lm.weight(layer).shape
    sums = [torch.zeros(size, d_in, device=lm.device) for size in (d_in, d_out)]
    count = 0
    for of_values in (False, True):
        for text in texts:
            document = tokenize(lm.tokenizer, text, max_length=lm.context_length)
            (record,) = lm.record(lm.to_device(collate([document], lm.tokenizer)), [lm.projections[layer]])
            keys = record.input[0].float()
            sums[of_values] += (record.output[0].float() if of_values else keys).mT @ keys
            count += len(keys) * (not of_values)
    return sums[0] / count, sums[1] / count


def solve(W: Tensor, K: Tensor, R: Tensor, V: Tensor, C: Tensor, WC: Tensor, rule: ZeroUnlearn) -> Tensor:
    """D W by Lemma 4.1, with every matrix formed."""
    W, U = W.double(), solvers.orthonormal_basis(V.double())
    P = torch.eye(len(W), dtype=W.dtype, device=W.device) - U @ U.mT
    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    inner = rule.retain_weight * WC.double() + rule.forget_weight * (W @ K + R) @ K.mT + rule.ridge * W
    M = rule.retain_weight * C.double() + rule.forget_weight * K @ K.mT + rule.ridge * eye
    return P @ (inner @ W.mT) @ torch.linalg.inv(W @ M @ W.mT) @ W


@torch.no_grad()
def evaluation(lm: EditableLM, forget: Sequence[Fact], retain: Sequence[Fact], prose: Sequence[str]) -> None:
    """Every query and document in a forward pass of its own."""
    queries = [fact.query for fact in (*forget, *retain)]
    for fact in forget:
        queries += [type(fact.query)(prompt, fact.target) for prompt in fact.paraphrases] + list(fact.neighbors)
    texts = [tokenize_query(lm.tokenizer, query) for query in queries]
    texts += [tokenize(lm.tokenizer, text, max_length=lm.context_length) for text in prose]
    for text in texts:
        lm.model(input_ids=torch.tensor([text.ids], device=lm.device), use_cache=False).logits.float().log_softmax(-1)
