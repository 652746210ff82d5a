"""Our pipeline and the published procedure, phase by phase, each timed in its own process."""

import argparse
import multiprocessing
import resource
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.setting import WHOLE, named_facts
from benchmarks.speed import transcription
from benchmarks.speed.random_model import random_lm
from zu_lightning import (
    EditableLM,
    Fact,
    LatentOptions,
    LayerProblem,
    LowRankUpdate,
    ReleaseProtocol,
    RetainText,
    ZeroUnlearn,
    apply_update,
    evaluate,
    evaluation_batches,
    export_adapter,
    export_model,
    lookup_keys,
    neutral_targets,
    original_values,
    read_texts,
    sample_contexts,
    second_moments,
    split_facts,
)
from zu_lightning.editing.keys import layer_outputs
from zu_lightning.editing.latents import Aim
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.lm.tokens import resolved_answer
from zu_lightning.runtime.timing import Monitor

COUNTED_FACTS = 200
"""Maximum number of facts for which our floating-point work is counted, and then scaled up."""
COUNTED_PUBLISHED_FACTS = 5
"""The same for the published procedure, whose facts all cost much the same."""

Side = Literal["ours", "published"]


@dataclass(frozen=True)
class Setting:
    """What both sides are given.

    Attributes:
        lm: The model, unedited.
        layers: Layers to edit, lowest first.
        forget: Facts to forget.
        sample: Those on which the published procedure is timed.
        retain: Facts to keep.
        corpus: Retain text.
        prose: Text for the perplexity.
        contexts: Texts to put before prompts, the first one empty.
        neutral_target: The neutral answer.
        method: The closed form.
    """

    lm: EditableLM
    layers: list[int]
    forget: list[Fact]
    sample: list[Fact]
    retain: list[Fact]
    corpus: list[str]
    prose: list[str]
    contexts: tuple[str, ...]
    neutral_target: str
    method: ZeroUnlearn

    @classmethod
    def of(cls, arguments: argparse.Namespace, n: int) -> "Setting":
        """The setting that the options describe, with n facts to forget."""
        lm = _model(arguments)
        forget, retain, _ = split_facts(named_facts(arguments), n, arguments.retain, seed=arguments.seed)
        corpus, prose = (read_texts(path, arguments.documents) for path in (arguments.corpus, arguments.heldout))
        latents = LatentOptions(facts_per_batch=arguments.facts_per_batch)
        method = ZeroUnlearn(latents=latents, release=ReleaseProtocol(kl_position="lookup"))
        setting = cls(
            lm, arguments.layers, forget, forget[: arguments.sample or n], retain, corpus, prose, sample_contexts(lm),
            resolved_answer(lm.tokenizer, arguments.neutral_target), method,
        )  # fmt: skip
        lookup_keys(lm, forget[:2], arguments.layers[-1], setting.contexts)  # warm up
        return setting


@dataclass(frozen=True)
class Measurement:
    """What a side took.

    Attributes:
        seconds: Seconds by phase; for the published procedure scaled up from the sample.
        targets: Neutral targets of the sample, d_out x facts.
        flop: Floating-point operations of the targets of all facts; NaN on a GPU.
        rate: Flop/s of the matrix product that takes most of the time.
        peak_gib: Peak memory of the process or, with a GPU, of the GPU.
        loaded_gib: The same before the first phase.
    """

    seconds: dict[str, float]
    targets: Tensor
    flop: float
    rate: float
    peak_gib: float
    loaded_gib: float


def measured(side: Side, arguments: argparse.Namespace, n: int) -> Measurement:
    """Measure a side on n facts, in a new process, so that memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, side, arguments, n).result()


def _measure(side: Side, arguments: argparse.Namespace, n: int) -> Measurement:
    setting = Setting.of(arguments, n)
    loaded = _peak_gib(setting.lm.device)
    with tempfile.TemporaryDirectory() as folder:
        targets, seconds = (_ours if side == "ours" else _published)(setting, Path(folder))
    peak = _peak_gib(setting.lm.device)
    setting = Setting.of(arguments, n)  # a fresh model: on the edited one the targets are reached at once
    counted = setting.forget[:COUNTED_FACTS] if side == "ours" else setting.sample[:COUNTED_PUBLISHED_FACTS]
    flop = float("nan")  # torch cannot count attention with grouped heads on a GPU
    if setting.lm.device.type == "cpu":
        with FlopCounterMode(display=False) as counter:
            (_targets if side == "ours" else _published_targets)(setting, counted)
        flop = counter.get_total_flops() * n / len(counted)
    return Measurement(
        seconds=seconds,
        targets=targets[:, : len(setting.sample)].cpu(),
        flop=flop,
        rate=_matrix_rate(setting.lm),
        peak_gib=peak,
        loaded_gib=loaded,
    )


def _ours(setting: Setting, folder: Path) -> tuple[Tensor, dict[str, float]]:
    """Our pipeline on all facts; returns the neutral targets, and seconds by phase."""
    lm, forget, contexts = setting.lm, setting.forget, setting.contexts
    monitor, updates = Monitor(), dict[int, LowRankUpdate]()
    with monitor.timed("moments"):
        moments = second_moments(lm, RetainText(setting.corpus, WHOLE), setting.layers)
    with monitor.timed("targets"):
        targets = _targets(setting, forget)
    for layer in setting.layers:
        with monitor.timed("keys"):
            keys = lookup_keys(lm, forget, layer, contexts)
            residuals = targets - layer_outputs(lm, forget, setting.layers[-1])
        with monitor.timed("values"):
            values = original_values(lm, forget, layer, contexts, setting.method)
        problem = LayerProblem(layer, keys, residuals, values, moments[layer])
        with monitor.timed("null space"):
            torch.linalg.eigh(problem.second_moment)
        with monitor.timed("solve"):
            updates[layer] = setting.method(lm.weight(layer), problem)
            apply_update(lm, layer, updates[layer])
    with monitor.timed("evaluation"):
        evaluate(lm, evaluation_batches(lm, forget, setting.retain, setting.prose))
    with monitor.timed("export"):
        export_model(lm, folder / "model")
        export_adapter(lm, updates, folder / "adapter")
    return targets, monitor.seconds


def _targets(setting: Setting, facts: Sequence[Fact]) -> Tensor:
    variants, aim = PromptVariants(setting.contexts), Aim(setting.neutral_target)
    return neutral_targets(setting.lm, facts, setting.layers[-1], variants, aim, setting.method).optimum


def _published(setting: Setting, folder: Path) -> tuple[Tensor, dict[str, float]]:
    """The published procedure on the sample; returns its neutral targets, and seconds by phase for all facts."""
    lm, sample, contexts = setting.lm, setting.sample, setting.contexts
    monitor, of_sample = Monitor(), Monitor()
    with of_sample.timed("targets"):
        targets = _published_targets(setting, sample)
    for layer in setting.layers:
        site, latents = lm.projections[layer], setting.method.latents
        with of_sample.timed("values"):
            values = [transcription.latent(lm, site, fact, fact.target, contexts, latents) for fact in sample]
        with of_sample.timed("keys"):
            keys = [transcription.key(lm, fact, layer, contexts) for fact in sample]
        with monitor.timed("moments"):
            C, WC = transcription.moments(lm, setting.corpus, layer)
        with monitor.timed("keys"):
            residuals = targets - layer_outputs(lm, sample, setting.layers[-1])
        problem = LayerProblem(layer, torch.stack(keys, 1), residuals, torch.stack(values, 1), C)
        with monitor.timed("null space"):
            torch.linalg.eigh(C)
        with monitor.timed("solve"):
            lm.set_weight(layer, transcription.solve(lm.weight(layer), problem, WC, setting.method))
    with of_sample.timed("evaluation"):
        share = len(setting.retain) * len(sample) // len(setting.forget)
        transcription.evaluation(lm, sample, setting.retain[:share], [])
    with monitor.timed("evaluation"):
        transcription.evaluation(lm, [], [], setting.prose)
    with monitor.timed("export"):
        lm.model.save_pretrained(folder / "model")
        lm.tokenizer.save_pretrained(folder)
    factor = len(setting.forget) / len(sample)
    return targets, {
        phase: monitor.seconds.get(phase, 0.0) + factor * of_sample.seconds.get(phase, 0.0)
        for phase in (*monitor.seconds, *of_sample.seconds)
    }


def _published_targets(setting: Setting, facts: Sequence[Fact]) -> Tensor:
    lm, site = setting.lm, setting.lm.layers[setting.layers[-1]]
    given = (setting.neutral_target, setting.contexts, setting.method.latents)
    return torch.stack([transcription.latent(lm, site, fact, *given) for fact in facts], 1)


def _model(arguments: argparse.Namespace) -> EditableLM:
    if arguments.shape is not None:
        return random_lm(arguments.shape, arguments.dtype, arguments.device)
    return EditableLM.from_pretrained(arguments.model, dtype=arguments.dtype).to(torch.device(arguments.device))


def _matrix_rate(lm: EditableLM) -> float:
    """Flop/s of the product that takes most of the time, in the shape of a batch."""
    weight, repeats = lm.weight(0), 200
    keys = torch.randn(1024, weight.shape[1], device=weight.device, dtype=weight.dtype)
    monitor = Monitor()
    for phase, count in (("warm up", 10), ("products", repeats)):
        with monitor.timed(phase):
            for _ in range(count):
                keys @ weight.mT
    return repeats * 2 * keys.shape[0] * weight.numel() / monitor.seconds["products"]


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
