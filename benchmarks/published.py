"""Our pipeline beside a faithful one-fact-at-a-time transcription of the published procedure, phase by phase.

python benchmarks/published.py --forget 50
python benchmarks/published.py --forget 1000 --sample 50    # the transcription is timed on 50 of them and scaled up

Both get the same model, facts, contexts and step budget. The transcription follows the paper: 25 Adam steps
a fact and vector, every context and the KL prompt in one full forward pass with logits everywhere, values for every
layer, keys one fact at a time, two corpus passes a layer (keys, and values against keys), a dense solve for D.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor

from zu_lightning import (
    EditableLM,
    Fact,
    LatentOptions,
    ZeroUnlearn,
    evaluate,
    evaluation_batches,
    lookup_keys,
    neutral_targets,
    original_values,
    read_facts,
    read_texts,
    sample_contexts,
    second_moments,
    solvers,
    split_facts,
)
from zu_lightning.keys import LayerProblem, layer_outputs
from zu_lightning.tokens import collate, tokenize, tokenize_fact, tokenize_query

PHASES = ("targets", "values", "keys", "moments", "null space", "solve", "evaluation")


class Clock:
    """Seconds by phase."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def __call__(self, phase: str, work: Callable[[], Any], factor: float = 1.0) -> Any:
        """Do some work and count its seconds, times ``factor``."""
        self._finish()
        begin = time.perf_counter()
        result = work()
        self._finish()
        self.seconds[phase] += factor * (time.perf_counter() - begin)
        return result

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def published_latent(
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
def published_key(lm: EditableLM, fact: Fact, layer: int, contexts: Sequence[str]) -> Tensor:
    """A fact's key, one context at a time: half the bare prompt's, half the mean of the others."""
    keys = []
    for context in contexts:
        text = tokenize_fact(lm.tokenizer, fact, context=context)
        (record,) = lm.record(lm.to_device(collate([text], lm.tokenizer)), [lm.projections[layer]])
        keys.append(record.input[0, text.lookup].double())
    return (keys[0] + torch.stack(keys[1:]).mean(0)) / 2


@torch.no_grad()
def published_moments(lm: EditableLM, texts: Sequence[str], layer: int) -> tuple[Tensor, Tensor]:
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


def published_solve(W: Tensor, K: Tensor, R: Tensor, V: Tensor, C: Tensor, WC: Tensor, rule: ZeroUnlearn) -> Tensor:
    """D W by Lemma 4.1, with every matrix formed."""
    W, U = W.double(), solvers.orthonormal_basis(V.double())
    P = torch.eye(len(W), dtype=W.dtype, device=W.device) - U @ U.mT
    eye = torch.eye(W.shape[1], dtype=W.dtype, device=W.device)
    inner = rule.retain_weight * WC.double() + rule.forget_weight * (W @ K + R) @ K.mT + rule.ridge * W
    M = rule.retain_weight * C.double() + rule.forget_weight * K @ K.mT + rule.ridge * eye
    return P @ (inner @ W.mT) @ torch.linalg.inv(W @ M @ W.mT) @ W


@torch.no_grad()
def published_evaluation(lm: EditableLM, forget: Sequence[Fact], retain: Sequence[Fact], prose: Sequence[str]) -> None:
    """Every query and document in a forward pass of its own."""
    queries = [fact.query for fact in (*forget, *retain)]
    for fact in forget:
        queries += [type(fact.query)(prompt, fact.target) for prompt in fact.paraphrases] + list(fact.neighbors)
    texts = [tokenize_query(lm.tokenizer, query) for query in queries]
    texts += [tokenize(lm.tokenizer, text, max_length=lm.context_length) for text in prose]
    for text in texts:
        lm.model(input_ids=torch.tensor([text.ids], device=lm.device), use_cache=False).logits.float().log_softmax(-1)


def main() -> None:
    """Both sides, and a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/demo/model")
    parser.add_argument("--facts", default="data/demo/facts.jsonl")
    parser.add_argument("--corpus", default="data/demo/corpus.txt")
    parser.add_argument("--heldout", default="data/demo/heldout.txt")
    parser.add_argument("--neutral", default="unknown")
    parser.add_argument("--layers", type=int, nargs="+", default=[0])
    parser.add_argument("--forget", type=int, default=50)
    parser.add_argument("--retain", type=int, default=300)
    parser.add_argument("--sample", type=int, help="facts on which the transcription is timed; all by default")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device, layers, options, rule = torch.device(arguments.device), arguments.layers, LatentOptions(), ZeroUnlearn()
    lm = EditableLM.from_pretrained(arguments.model).to(device)
    forget, retain = split_facts(read_facts(arguments.facts), arguments.forget, arguments.retain, 0)
    corpus, prose = read_texts(arguments.corpus), read_texts(arguments.heldout)
    contexts = sample_contexts(lm, seed=0)
    last = layers[-1]

    ours = Clock(device)
    ours("targets", lambda: lookup_keys(lm, forget[:2], last, contexts))  # warm up
    ours.seconds["targets"] = 0.0
    moments = ours("moments", lambda: second_moments(lm, corpus, layers))
    targets = ours("targets", lambda: neutral_targets(lm, forget, last, arguments.neutral, contexts, options)).optimum
    for layer in layers:
        K = ours("keys", lambda layer=layer: lookup_keys(lm, forget, layer, contexts))
        R = ours("keys", lambda: targets - layer_outputs(lm, forget, last))
        V = ours("values", lambda layer=layer: original_values(lm, forget, layer, contexts, options))
        problem = LayerProblem(layer, K, R, V, moments[layer])
        ours("null space", lambda layer=layer: torch.linalg.eigh(moments[layer]))
        ours("solve", lambda layer=layer, problem=problem: rule(lm.weight(layer), problem))
    ours("evaluation", lambda: evaluate(lm, evaluation_batches(lm, forget, retain, prose)))
    peak = _peak_gib(device)

    theirs = Clock(device)
    some = forget[: arguments.sample or len(forget)]
    factor = len(forget) / len(some)
    found = theirs(
        "targets",
        lambda: [published_latent(lm, f, arguments.neutral, last, contexts, options, inside=False) for f in some],
        factor,
    )
    difference = (torch.stack(found, 1).double() - targets[:, : len(some)]).norm() / targets[:, : len(some)].norm()
    for layer in layers:
        V = torch.stack(
            theirs(
                "values",
                lambda layer=layer: [
                    published_latent(lm, f, f.target, layer, contexts, options, inside=True) for f in some
                ],
                factor,
            ),
            1,
        )
        K = torch.stack(
            theirs("keys", lambda layer=layer: [published_key(lm, f, layer, contexts) for f in some], factor), 1
        )
        C, WC = theirs("moments", lambda layer=layer: published_moments(lm, corpus, layer))
        R = targets[:, : len(some)] - layer_outputs(lm, some, last)
        theirs("null space", lambda C=C: torch.linalg.eigh(C))
        theirs("solve", lambda layer=layer, t=(K, R, V, C, WC): published_solve(lm.weight(layer), *t, rule))
    theirs("evaluation", lambda: published_evaluation(lm, some, retain, prose))

    print(f"{len(forget)} facts, layers {layers}, {arguments.model}; largest memory {peak:.2f} GiB (ours, so far)")
    print(
        f"and {_peak_gib(device):.2f} GiB (both); the transcription was timed on {len(some)} facts; its targets differ"
    )
    print(f"from ours by {difference:.1e} of their norm.\n")
    print("| phase | published, s | ours, s | ratio |\n|---|---|---|---|")
    for name in (*PHASES, "together"):
        a, b = (sum(c.seconds.values()) if name == "together" else c.seconds[name] for c in (theirs, ours))
        print(f"| {name} | {a:.2f} | {b:.2f} | {a / max(b, 1e-9):.1f} |")


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
