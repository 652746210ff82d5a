r"""Our pipeline and the published procedure, phase by phase: seconds and memory.

python -m benchmarks.speed.published --forget 10 50 200 1000 --sample 20
python -m benchmarks.speed.published --model path/to/model.gguf --layers 3 4 5 --facts FACTS --ids IDS --corpus CORPUS \
    --tokens 100000 --heldout HELDOUT --neutral-target "<eos>" --sample 3
python -m benchmarks.speed.published --shape 3b --layers 16 17 18 --forget 1000 --sample 3 --device cuda \
    --dtype bfloat16

Both sides get the same model, facts, contexts, texts, and step budget, and a process each. The published procedure
(``transcription.py``) is timed on ``--sample`` facts. Since it treats them one at a time, its seconds for targets,
values, keys, and the evaluation of queries are multiplied by facts / sample. What does not depend on the number of
facts is timed in full: its passes over the retain text (two per layer), the null space, the dense solve, the
perplexity, and the export.
"""

import argparse
import math
import multiprocessing
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks.setup import draw_facts, new_parser, table_head, table_row
from benchmarks.speed import transcription
from benchmarks.speed.random_model import random_lm
from benchmarks.speed.shapes import SHAPES
from zu_lightning import (
    EditableLM,
    Fact,
    LatentOptions,
    LayerProblem,
    LowRankUpdate,
    ReadingOptions,
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
    retain_documents,
    sample_contexts,
    second_moments,
)
from zu_lightning.editing.keys import layer_outputs
from zu_lightning.editing.latents import Aim
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.lm.tokens import TokenizedText, resolved_answer, tokenize
from zu_lightning.runtime.timing import Monitor

PHASES = ("targets", "values", "keys", "moments", "null space", "solve", "evaluation", "export", "total")
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
        reading: How much of the texts is read.
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
    reading: ReadingOptions
    contexts: tuple[str, ...]
    neutral_target: str
    method: ZeroUnlearn

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Setting":
        """The setting that the options describe."""
        lm, reading = _model(arguments), arguments.reading
        forget, retain, _ = draw_facts(arguments)
        corpus = retain_documents(read_texts(arguments.corpus, reading.corpus_documents), forget)
        prose = read_texts(arguments.heldout, reading.heldout_documents)
        latents = LatentOptions(facts_per_batch=arguments.facts_per_batch)
        method = ZeroUnlearn(latents=latents, release=ReleaseProtocol(kl_position="lookup"))
        setting = cls(
            lm, arguments.layers, forget, forget[: arguments.sample], retain, corpus, prose, reading,
            sample_contexts(lm), resolved_answer(lm.tokenizer, arguments.neutral_target), method,
        )  # fmt: skip
        lookup_keys(lm, forget[:2], arguments.layers[-1], setting.contexts)  # warm up
        return setting


@dataclass(frozen=True)
class Measurement:
    """What a side took.

    Attributes:
        seconds: Seconds by phase; for the published procedure scaled up from the sample.
        targets: Neutral targets of the sample, d_out x facts.
        peak_gib: Peak memory of the process or, with a GPU, of the GPU.
        loaded_gib: The same before the first phase.
    """

    seconds: dict[str, float]
    targets: Tensor
    peak_gib: float
    loaded_gib: float


def measured(side: Side, arguments: argparse.Namespace) -> Measurement:
    """Measure a side in a new process, so that memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, side, arguments).result()


def _measure(side: Side, arguments: argparse.Namespace) -> Measurement:
    setting = Setting.of(arguments)
    loaded = _peak_gib(setting.lm.device)
    with tempfile.TemporaryDirectory() as folder:
        targets, seconds = (_ours if side == "ours" else _published)(setting, Path(folder))
    return Measurement(seconds, targets[:, : len(setting.sample)].cpu(), _peak_gib(setting.lm.device), loaded)


def _ours(setting: Setting, folder: Path) -> tuple[Tensor, dict[str, float]]:
    """Our pipeline on all facts; returns the neutral targets, and seconds by phase."""
    lm, forget, contexts = setting.lm, setting.forget, setting.contexts
    monitor, updates = Monitor(progress=True), dict[int, LowRankUpdate]()
    with monitor.timed("moments"):
        moments = second_moments(lm, RetainText(setting.corpus, setting.reading), setting.layers, monitor)
    variants, aim = PromptVariants(contexts), Aim(setting.neutral_target)
    with monitor.timed("targets"):
        targets = neutral_targets(lm, forget, setting.layers[-1], variants, aim, setting.method, monitor).optimum
    for layer in setting.layers:
        with monitor.timed("keys"):
            keys = lookup_keys(lm, forget, layer, contexts)
            residuals = targets - layer_outputs(lm, forget, setting.layers[-1])
        with monitor.timed("values"):
            values = original_values(lm, forget, layer, contexts, setting.method, monitor)
        problem = LayerProblem(layer, keys, residuals, values, moments[layer])
        with monitor.timed("null space"):
            torch.linalg.eigh(problem.second_moment)
        with monitor.timed("solve"):
            updates[layer] = setting.method(lm.weight(layer), problem)
            apply_update(lm, layer, updates[layer])
    with monitor.timed("evaluation"):
        evaluate(lm, evaluation_batches(lm, forget, setting.retain, setting.prose, setting.reading))
    with monitor.timed("export"):
        export_model(lm, folder / "model")
        export_adapter(lm, updates, folder / "adapter")
    return targets, monitor.seconds


def _published(setting: Setting, folder: Path) -> tuple[Tensor, dict[str, float]]:
    """The published procedure on the sample; returns its neutral targets, and seconds by phase for all facts."""
    lm, sample, contexts, layers = setting.lm, setting.sample, setting.contexts, setting.layers
    monitor, of_sample = Monitor(progress=True), Monitor(progress=True)
    latents = setting.method.latents
    documents = list(_cut(lm, setting.corpus, setting.reading))
    tokens = 2 * sum(len(document.ids) for document in documents)
    with _phase(of_sample, "targets", sample) as facts:
        site = lm.layers[layers[-1]]
        optimized = [transcription.latent(lm, site, fact, setting.neutral_target, contexts, latents) for fact in facts]
        targets = torch.stack(optimized, 1)
    for layer in layers:
        site = lm.projections[layer]
        with _phase(of_sample, "values", sample, layer) as facts:
            values = [transcription.latent(lm, site, fact, fact.target, contexts, latents) for fact in facts]
        with _phase(of_sample, "keys", sample, layer) as facts:
            keys = [transcription.key(lm, fact, layer, contexts) for fact in facts]
        with _phase(monitor, "moments", range(tokens), layer, "tokens") as bar:
            C, WC = transcription.moments(lm, documents, layer, bar)
        with monitor.timed("keys"):
            residuals = targets - layer_outputs(lm, sample, layers[-1])
        problem = LayerProblem(layer, torch.stack(keys, 1), residuals, torch.stack(values, 1), C)
        with monitor.timed("null space"):
            torch.linalg.eigh(C)
        with monitor.timed("solve"):
            lm.set_weight(layer, transcription.solve(lm.weight(layer), problem, WC, setting.method))
    length = min(setting.reading.max_length, lm.context_length)
    share = len(setting.retain) * len(sample) // len(setting.forget)
    with _phase(of_sample, "evaluation", _queries(lm, sample, setting.retain[:share]), unit="queries") as queries:
        transcription.evaluation(lm, queries)
    prose = [tokenize(lm.tokenizer, text, max_length=length) for text in setting.prose]
    with _phase(monitor, "evaluation", prose, unit="documents") as texts:
        transcription.evaluation(lm, texts)
    with monitor.timed("export"):
        lm.model.save_pretrained(folder / "model")
        lm.tokenizer.save_pretrained(folder)
    factor = len(setting.forget) / len(sample)
    return targets, {
        phase: monitor.seconds.get(phase, 0.0) + factor * of_sample.seconds.get(phase, 0.0)
        for phase in dict.fromkeys((*of_sample.seconds, *monitor.seconds))
    }


@contextmanager
def _phase(
    monitor: Monitor, phase: str, items: Sequence[Any], layer: int | None = None, unit: str = "facts"
) -> Iterator[Any]:
    """Time a phase of the published procedure, with a progress bar over ``items``, and say what it took."""
    before, name = monitor.seconds.get(phase, 0.0), f"{phase}, layer {layer}" if layer is not None else phase
    with monitor.timed(phase), tqdm(items, f"Published {name}", unit=f" {unit}", leave=False) as bar:
        yield bar
    taken = monitor.seconds[phase] - before
    tqdm.write(f"published procedure: {name}: {taken:.1f} s for {len(items)} {unit}", file=sys.stderr)


def _cut(lm: EditableLM, texts: Sequence[str], reading: ReadingOptions) -> Iterator[TokenizedText]:
    """The documents that our pipeline reads, cut to the same tokens."""
    left = math.inf if reading.corpus_tokens is None else reading.corpus_tokens
    for text in texts:
        if left > 0:
            document = tokenize(lm.tokenizer, text, max_length=int(min(reading.max_length, lm.context_length, left)))
            left -= len(document.ids)
            yield document


def _queries(lm: EditableLM, forget: Sequence[Fact], retain: Sequence[Fact]) -> list[TokenizedText]:
    queries = [fact.query for fact in (*forget, *retain)]
    queries += [query for fact in forget for query in (*fact.paraphrased, *fact.neighbors)]
    return [tokenize(lm.tokenizer, query) for query in queries]


def _model(arguments: argparse.Namespace) -> EditableLM:
    if arguments.shape is not None:
        return random_lm(arguments.shape, arguments.dtype, arguments.device)
    return EditableLM.from_pretrained(arguments.model, dtype=arguments.dtype).to(torch.device(arguments.device))


def _peak_gib(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare(arguments: argparse.Namespace, n: int) -> float:
    """Measure both sides, one after the other, and print their table; returns our seconds."""
    given = argparse.Namespace(**vars(arguments) | {"forget": n})
    ours, published = measured("ours", given), measured("published", given)
    reference = published.targets.double()
    difference = (ours.targets.double() - reference).norm() / reference.norm()
    model = arguments.shape or arguments.model
    print(f"\n{n} facts, layers {arguments.layers}, {model}, {arguments.dtype} on {arguments.device}.")
    print(f"The published procedure is timed on {reference.shape[1]} of them.")
    print(f"The neutral targets of both differ by {difference:.1e} of their norm.\n")
    print(table_head(("phase", "published, s", "ours, s", "ratio")))
    theirs, mine = (side.seconds | {"total": sum(side.seconds.values())} for side in (published, ours))
    rows = [(phase, theirs[phase], mine[phase]) for phase in PHASES]
    rows.append(("peak GiB", published.peak_gib, ours.peak_gib))
    for name, a, b in rows:
        print(table_row((name, f"{a:.2f}", f"{b:.2f}", f"{a / max(b, 1e-9):.1f}")))
    above = [f"{side.peak_gib - side.loaded_gib:.2f}" for side in (published, ours)]
    print(table_row(("GiB above the loaded model", *above, "")))
    return mine["total"]


def main() -> None:
    """A table for each number of facts, and how our time grows with it."""
    common = ("model", "facts", "ids", "corpus", "heldout", "neutral-target", "layers", "retain", "seed", "device")
    parser = new_parser(__doc__, *common)
    add = parser.add_argument
    add("--shape", choices=SHAPES, help="a random model of a shape in place of --model")
    add("--forget", type=int, nargs="+", default=[50], help="numbers of facts to forget (default: %(default)s)")
    add(
        "--documents", type=int, default=100_000, help="maximum number of documents of each text (default: %(default)s)"
    )
    add("--tokens", type=int, help="maximum number of tokens of the retain text (default: all)")
    add("--sample", type=int, help="number of facts on which the published procedure is timed (default: all)")
    add(
        "--facts-per-batch",
        type=int,
        default=LatentOptions().facts_per_batch,
        help="number of facts that we optimize at a time (default: %(default)s)",
    )
    add("--dtype", default="float32", help="how the weights are kept (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.reading = ReadingOptions(arguments.documents, arguments.tokens, arguments.documents)
    totals = [(n, compare(arguments, n)) for n in sorted(arguments.forget)]
    for (n, a), (m, b) in pairwise(totals):
        print(f"From {n} to {m} facts our time grows with n to the power of {math.log(b / a) / math.log(m / n):.2f}.")


if __name__ == "__main__":
    main()
