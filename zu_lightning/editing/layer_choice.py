"""Which layers to edit, decided by trial edits of other facts.

How much an edit costs depends on its layers more than on anything else, and the best layers depend on the model and on
the method. So candidates are tried: the method forgets a few facts that are not in the request, at each candidate's
layers, and what is lost of other facts is measured, in probabilities, since few facts would flip.
"""

import logging
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from zu_lightning.editing.editor import LayerEditor
from zu_lightning.editing.method import EditingMethod
from zu_lightning.editing.moments import second_moments
from zu_lightning.editing.request import Request
from zu_lightning.evaluation.known import measure_known
from zu_lightning.evaluation.scores import evaluate, evaluation_batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.runtime.cache import Tensors
from zu_lightning.runtime.distributed import rank_shard
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor

log = logging.getLogger(__name__)

FACTS = 10
"""Number of facts that a trial forgets."""
OTHERS = 100
"""Number of other facts whose answers should stay."""
HELDOUT = 10
"""Number of documents for the perplexity."""
ASKED = 600
"""Number of facts of which the model is asked which it knows, in order to find these."""
LEFT = 0.1
"""A trial has forgotten its facts if at most this share of their answers' probability is left."""
TRIAL_SEED = 500_009
"""Added to the request's seed: trials draw other facts than the request."""


@dataclass(frozen=True)
class Trial:
    """What an edit of some layers did to facts that are not in the request.

    Attributes:
        layers: The layers, lowest first.
        left: Share of the probability that the answers to forget had before, mean over prompts and paraphrases.
        kept: The same of other facts, and of neighbors of the forgotten ones.
        perplexity: Perplexity of held-out text, relative to that before.
    """

    layers: tuple[int, ...]
    left: float
    kept: float
    perplexity: float


@dataclass(frozen=True)
class LayerChoice:
    """All trials, and the best of them."""

    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """Of the trials that have forgotten their facts, the one that keeps most; if none has, the best compromise."""
        done = [trial for trial in self.trials if trial.left <= LEFT]
        if done:
            return max(done, key=lambda trial: trial.kept)
        return max(self.trials, key=lambda trial: trial.kept - trial.left)

    @property
    def table(self) -> str:
        """A line for each trial, the best one marked."""
        lines = [f"{'layers':<12}{'left, %':>9}{'kept, %':>9}{'perplexity':>12}"]
        for trial in self.trials:
            mark = "  <- chosen" if trial == self.best else ""
            numbers = f"{100 * trial.left:>9.1f}{100 * trial.kept:>9.1f}{'x ' + format(trial.perplexity, '.3f'):>12}"
            lines.append(f"{named(trial.layers):<12}{numbers}{mark}")
        return "\n".join(lines)


def named(layers: Sequence[int]) -> str:
    """A range of layers in words."""
    return str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def candidates(depth: int) -> list[tuple[int, ...]]:
    """At most ten ranges of layers to try in a model of this depth.

    Early ones in steps of a tenth of the depth, up to the middle; and longer ones from the first layer on.
    """
    tenth = max(1, round(depth / 10))
    windows = [(start * tenth, (start + 1) * tenth) for start in range(6)]
    longer = [(0, 2 * tenth), (tenth, 3 * tenth), (0, round(depth / 3)), (0, round(depth / 2))]
    ranges = [tuple(range(start, min(end, depth))) for start, end in windows + longer]
    return list(dict.fromkeys(layers for layers in ranges if layers))


def choose_layers(
    lm: EditableLM,
    request: Request,
    method: EditingMethod,
    neutral_target: str = "unknown",
    monitor: Monitor | None = None,
) -> LayerChoice:
    """Try each of the :func:`candidates` on facts that are not in the request.

    Args:
        lm: The model, which is left as it is.
        request: What will be forgotten and kept. None of its facts to forget, or only to measure, is used.
        method: The method that will edit the layers.
        neutral_target: The neutral answer.
        monitor: Times the phase ``layers``, and shows progress.

    Returns:
        The trials. Those that a run has finished are found in the request's cache.

    Raises:
        InputError: The data has too few other facts that the model answers.
    """
    monitor, tried = monitor or Monitor(), candidates(len(lm.layers))
    with monitor.timed("layers"), _with_cache(request) as cached:
        trial = _trial_request(lm, cached, method, monitor)
        every = sorted({layer for layers in tried for layer in layers})
        second_moments(lm, trial.text, every, monitor, open_cache(trial.cache, lm))
        batches = evaluation_batches(lm, trial.forget, trial.retain, trial.heldout, trial.text.reading)
        before = evaluate(lm, rank_shard(batches))

        def compute(some: list[tuple[int, ...]]) -> dict[tuple[int, ...], Tensors]:
            found = {}
            with monitor.bar("Trial edits", len(tried), "edits", len(tried) - len(some)) as bar:
                for layers in some:
                    bar.set_postfix_str(f"layers {named(layers)}")
                    with _edited(lm, trial, layers, method, neutral_target) as is_edited:
                        after = evaluate(lm, rank_shard(batches)) if is_edited else {}
                    found[layers] = {"shares": torch.tensor(_shares(before, after), dtype=torch.float64)}
                    bar.update(1)
            return found

        decisive = (trial.forget, trial.retain, trial.protect, trial.text.documents, method.describe(), neutral_target)
        found = open_cache(trial.cache, lm).each("trial", tried, compute, *decisive)
    choice = LayerChoice(tuple(Trial(layers, *found[layers]["shares"].tolist()) for layers in tried))
    log.info("layers %s are edited, by %d trial edits:\n%s", named(choice.best.layers), len(tried), choice.table)
    return choice


def _shares(before: Mapping[str, float], after: Mapping[str, float]) -> tuple[float, float, float]:
    """Left, kept, and relative perplexity; an edit without a solution leaves everything and keeps nothing."""
    if not after:
        return 1.0, 0.0, float("inf")

    def share(*names: str) -> float:
        present = [f"{name}_probability" for name in names if before.get(f"{name}_probability")]
        return sum(min(1.0, after[name] / before[name]) for name in present) / len(present)

    perplexity = after["perplexity"] / before["perplexity"] if "perplexity" in before else 1.0
    return share("efficacy", "generalization"), share("retain", "specificity"), perplexity


def _trial_request(lm: EditableLM, request: Request, method: EditingMethod, monitor: Monitor) -> Request:
    """A request like another one, for facts that it neither forgets nor measures, and about other subjects."""
    measured = {fact.id for fact in (*request.forget, *request.retain)}
    subjects = {fact.subject for fact in request.forget if fact.subject}
    others = [fact for fact in request.all_facts if fact.id not in measured and fact.subject not in subjects]
    drawn = random.Random(request.seed + TRIAL_SEED).sample(others, min(ASKED, len(others)))
    certainties = measure_known(lm, drawn, cache=request.cache, monitor=monitor)
    known = [fact for fact in drawn if certainties[fact.id].answers(0.0)]
    if len(known) < 2 * FACTS:
        remedy = (
            f"of {len(drawn)} facts that are not in the request, the model answers {len(known)}, too few to try layers "
            "on: give more facts, or name the layers."
        )
        raise InputError("layers", "auto", remedy)
    forget, retain = known[:FACTS], known[FACTS : FACTS + OTHERS]
    return Request.draw(
        others,
        request.text.corpus or request.text.documents,
        method=method,
        forget=[fact.id for fact in forget],
        retain=[fact.id for fact in retain],
        protect=min(len(request.protected_others), len(others) - len(forget) - len(retain)),
        heldout=request.heldout[:HELDOUT],
        reading=request.text.reading,
        seed=request.seed + TRIAL_SEED,
        unknown_subjects=request.unknown_subjects,
        cache=request.cache,
    )


@contextmanager
def _edited(
    lm: EditableLM, request: Request, layers: Sequence[int], method: EditingMethod, neutral_target: str
) -> Iterator[bool]:
    """Within this context the layers are edited; whether there is a solution."""
    weights = {layer: lm.weight(layer).clone() for layer in layers}
    try:
        yield _has_solution(lm, request, layers, method, neutral_target)
    finally:
        for layer, weight in weights.items():
            lm.set_weight(layer, weight)


def _has_solution(
    lm: EditableLM, request: Request, layers: Sequence[int], method: EditingMethod, neutral_target: str
) -> bool:
    """Edit layers; whether each of them has a solution."""
    editor = LayerEditor(lm, request, layers, method, neutral_target)
    try:
        with _quietly():
            while editor.layers_left:
                problem = editor.next_problem()
                editor.write(problem, editor.solve(problem))
    except InputError as error:
        log.warning("layers %s: %s", named(layers), error)
        return False
    return True


@contextmanager
def _quietly() -> Iterator[None]:
    """Within this context edits do not log what they do."""
    parent = logging.getLogger(__package__)
    level = parent.level
    parent.setLevel(logging.WARNING)
    try:
        yield
    finally:
        parent.setLevel(level)


@contextmanager
def _with_cache(request: Request) -> Iterator[Request]:
    """The request with a cache, which trials share; a temporary one if it has none."""
    if request.cache is not None:
        yield request
        return
    with tempfile.TemporaryDirectory() as folder:
        yield replace(request, cache=Path(folder))
