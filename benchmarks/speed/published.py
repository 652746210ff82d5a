"""Our pipeline beside the published procedure, phase by phase: seconds, floating-point work and memory.

python benchmarks/published.py --forget 10 50 200 1000 --sample 20
python benchmarks/published.py --shape 3b --layers 16 17 18 --forget 1000 --sample 3 --device cuda --dtype bfloat16

Both sides get the same model, facts, contexts and step budget, and a process of their own. The published procedure
(``transcription.py``) is timed on ``--sample`` facts and scaled up, since it treats them one at a time.
"""

import argparse
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import transcription
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from zu_lightning import (
    EditableLM,
    LatentOptions,
    ZeroUnlearn,
    evaluate,
    evaluation_batches,
    export_adapter,
    export_model,
    lookup_keys,
    neutral_targets,
    original_values,
    read_facts,
    read_texts,
    sample_contexts,
    second_moments,
    split_facts,
)
from zu_lightning.problem.keys import LayerProblem, layer_outputs

PHASES = ("targets", "values", "keys", "moments", "null space", "solve", "evaluation", "export")
DEMO = Path("data/demo")
SHAPES = {
    # hidden size, intermediate size, layers, heads, key-value heads, vocabulary
    "100m": (768, 2048, 12, 12, 4, 32_000),
    "3b": (3072, 8192, 28, 24, 8, 128_256),
    "8b": (4096, 14_336, 32, 32, 8, 128_256),
}
"""Randomly initialised Llamas: they know nothing, but take as long."""


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


class Setting:
    """What both sides are given."""

    def __init__(self, arguments: argparse.Namespace, n: int) -> None:
        self.device, self.layers, self.neutral = torch.device(arguments.device), arguments.layers, arguments.neutral
        self.lm = _model(arguments.shape, arguments.dtype, self.device)
        self.forget, self.retain = split_facts(read_facts(str(DEMO / "facts.jsonl")), n, arguments.retain, 0)
        self.some = self.forget[: arguments.sample or n]
        documents = arguments.documents
        self.corpus, self.prose = (read_texts(str(DEMO / name), documents) for name in ("corpus.txt", "heldout.txt"))
        self.options, self.rule = LatentOptions(facts_per_batch=arguments.facts_per_batch), ZeroUnlearn()
        self.contexts = sample_contexts(self.lm, seed=0)
        lookup_keys(self.lm, self.forget[:2], self.layers[-1], self.contexts)  # warm up
        self.memory_before = _peak_gib(self.device)


def ours(setting: Setting, folder: Path) -> tuple[Clock, Tensor]:
    """Our pipeline's phases on all facts."""
    lm, forget, last, clock = setting.lm, setting.forget, setting.layers[-1], Clock(setting.device)
    moments = clock("moments", lambda: second_moments(lm, setting.corpus, setting.layers))
    targets = clock("targets", lambda: _targets(setting))
    for layer in setting.layers:
        keys = clock("keys", lambda layer=layer: lookup_keys(lm, forget, layer, setting.contexts))
        residuals = clock("keys", lambda: targets - layer_outputs(lm, forget, last))
        values = clock(
            "values", lambda layer=layer: original_values(lm, forget, layer, setting.contexts, setting.options)
        )
        problem = LayerProblem(layer, keys, residuals, values, moments[layer])
        clock("null space", lambda layer=layer: torch.linalg.eigh(moments[layer]))
        update = clock("solve", lambda problem=problem: setting.rule(lm.weight(problem.layer), problem))
        clock("solve", lambda layer=layer, update=update: lm.apply(layer, update))
    clock("evaluation", lambda: evaluate(lm, evaluation_batches(lm, forget, setting.retain, setting.prose)))
    clock("export", lambda: (export_model(lm, folder / "model"), export_adapter(lm, folder / "adapter")))
    return clock, targets


def published(setting: Setting, folder: Path) -> tuple[Clock, Tensor]:
    """The published procedure's phases, on the sample."""
    lm, some, last, clock = setting.lm, setting.some, setting.layers[-1], Clock(setting.device)
    contexts, options, factor = setting.contexts, setting.options, len(setting.forget) / len(setting.some)
    targets = torch.stack(
        clock(
            "targets",
            lambda: [
                transcription.latent(lm, fact, setting.neutral, last, contexts, options, inside=False) for fact in some
            ],
            factor,
        ),
        1,
    )
    for layer in setting.layers:
        values = clock(
            "values",
            lambda layer=layer: [
                transcription.latent(lm, fact, fact.target, layer, contexts, options, inside=True) for fact in some
            ],
            factor,
        )
        keys = clock("keys", lambda layer=layer: [transcription.key(lm, f, layer, contexts) for f in some], factor)
        C, WC = clock("moments", lambda layer=layer: transcription.moments(lm, setting.corpus, layer))
        residuals = clock("keys", lambda: targets - layer_outputs(lm, some, last))
        clock("null space", lambda C=C: torch.linalg.eigh(C))
        given = (torch.stack(keys, 1), residuals, torch.stack(values, 1), C, WC)
        weight = clock(
            "solve", lambda layer=layer, given=given: transcription.solve(lm.weight(layer), *given, setting.rule)
        )
        clock("solve", lambda layer=layer, weight=weight: lm.set_weight(layer, weight))
    bare = (some, setting.retain[: len(setting.retain) * len(some) // len(setting.forget)])
    clock("evaluation", lambda: transcription.evaluation(lm, *bare, []), factor)
    clock("evaluation", lambda: transcription.evaluation(lm, [], [], setting.prose))
    clock("export", lambda: (lm.model.save_pretrained(folder / "model"), lm.tokenizer.save_pretrained(folder)))
    return clock, targets


def run_side(side: str, arguments: argparse.Namespace, n: int, results: Path) -> None:
    """One side, in this process: seconds, memory, and the floating-point work of the targets."""
    setting = Setting(arguments, n)
    with tempfile.TemporaryDirectory() as folder:
        clock, targets = (ours if side == "ours" else published)(setting, Path(folder))
    found = {"seconds": clock.seconds, "peak": _peak_gib(setting.device), "before": setting.memory_before}
    # On a fresh model: on the edited one the targets are reached at once.
    setting = Setting(arguments, n)
    counted = setting.forget[: min(n, 200)] if side == "ours" else setting.some[:5]
    with FlopCounterMode(display=False) as counter:
        if side == "ours":
            _targets(setting, counted)
        else:
            given = (setting.layers[-1], setting.contexts, setting.options)
            for fact in counted:
                transcription.latent(setting.lm, fact, setting.neutral, *given, inside=False)
    found |= {"flop": counter.get_total_flops() * n / len(counted), "rate": _matrix_rate(setting.lm)}
    torch.save(found | {"targets": targets[:, : len(setting.some)].cpu()}, results)


def compare(arguments: argparse.Namespace, n: int) -> float:
    """Both sides one after the other, and their table; returns our seconds."""
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("ours", "published"):
            results = Path(folder, side)
            given = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--side",
                side,
                "--one",
                str(n),
                "--results",
                str(results),
            ]
            subprocess.run(given, check=True)
            sides[side] = torch.load(results)
    us, them = sides["ours"], sides["published"]
    gap = (us["targets"].double() - them["targets"].double()).norm() / them["targets"].double().norm()
    timed = min(n, arguments.sample or n)
    print(f"\n{n} facts, layers {arguments.layers}, {arguments.shape}, {arguments.dtype} on {arguments.device}; the")
    print(f"published procedure timed on {timed} facts; targets differ by {gap:.1e} of their norm\n")
    print("| phase | published, s | ours, s | ratio |\n|---|---|---|---|")
    totals = {}
    for name in (*PHASES, "together"):
        a, b = (sum(s["seconds"].values()) if name == "together" else s["seconds"][name] for s in (them, us))
        print(f"| {name} | {a:.2f} | {b:.2f} | {a / max(b, 1e-9):.1f} |")
        totals[name] = b
    for name, scale, unit in (("flop", 1e12, "Tflop in targets"), ("peak", 1.0, "GiB at most")):
        print(f"| {unit} | {them[name] / scale:.2f} | {us[name] / scale:.2f} | {them[name] / us[name]:.1f} |")
    print(f"| GiB above the loaded model | {them['peak'] - them['before']:.2f} | {us['peak'] - us['before']:.2f} | |")
    bare = us["flop"] / us["rate"]
    times = totals["targets"] / bare
    print(f"\nMatrix rate {us['rate'] / 1e12:.3f} Tflop/s: our targets take {times:.1f} times their bare work.")
    return totals["together"]


def main() -> None:
    """A table for each number of facts, and how our time grows with it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="demo", choices=["demo", *SHAPES])
    parser.add_argument("--neutral", default="unknown")
    parser.add_argument("--layers", type=int, nargs="+", default=[0])
    parser.add_argument("--forget", type=int, nargs="+", default=[50])
    parser.add_argument("--retain", type=int, default=300)
    parser.add_argument("--documents", type=int, default=100_000, help="most of the corpus, and of the prose")
    parser.add_argument("--sample", type=int, help="facts on which the published procedure is timed; all by default")
    parser.add_argument("--facts-per-batch", type=int, default=LatentOptions().facts_per_batch)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    for name, kind in (("--side", str), ("--one", int), ("--results", Path)):  # one side's own process
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments, arguments.one, arguments.results)
        return
    counts = sorted(arguments.forget)
    seconds = [compare(arguments, n) for n in counts]
    for (n, a), (m, b) in zip(
        zip(counts, seconds, strict=True), list(zip(counts, seconds, strict=True))[1:], strict=False
    ):
        print(f"from {n} to {m} facts our time grows with n to the power of {math.log(b / a) / math.log(m / n):.2f}")


def _targets(setting: Setting, facts: Any = None) -> Tensor:
    last = setting.layers[-1]
    given = (setting.lm, facts or setting.forget, last, setting.neutral, setting.contexts, setting.options)
    return neutral_targets(*given).optimum


def _model(shape: str, dtype: str, device: torch.device) -> EditableLM:
    if shape == "demo":
        return EditableLM.from_pretrained(DEMO / "model", dtype=dtype).to(device)
    width, inner, depth, heads, key_value_heads, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    with device:
        config = LlamaConfig(
            hidden_size=width, intermediate_size=inner, num_hidden_layers=depth, num_attention_heads=heads,
            num_key_value_heads=key_value_heads, vocab_size=vocabulary, max_position_embeddings=2048,
            tie_word_embeddings=True, dtype=dtype,
        )  # fmt: skip
        model = LlamaForCausalLM(config).to(getattr(torch, dtype))
    return EditableLM(model, AutoTokenizer.from_pretrained(DEMO / "model"))


def _matrix_rate(lm: EditableLM) -> float:
    """Flop/s of the product that most of the time goes into, in the shape of a batch."""
    weight = lm.weight(0)
    keys = torch.randn(1024, weight.shape[1], device=weight.device, dtype=weight.dtype)
    clock = Clock(weight.device)
    for repeats in (10, 200):
        clock.seconds["solve"] = 0.0
        clock("solve", lambda repeats=repeats: [keys @ weight.mT for _ in range(repeats)])
    return 200 * 2 * keys.shape[0] * weight.numel() / clock.seconds["solve"]


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
