"""From facts to an edited model in one call: the library's front door. The Lightning pipeline takes the same steps."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from zu_lightning.facts.fact import Fact
from zu_lightning.lm.contexts import sample_contexts
from zu_lightning.lm.editable import EditableLM, EditReport, check_layers
from zu_lightning.lm.tokens import check_lengths, tokenize_fact
from zu_lightning.methods.rules import Rule
from zu_lightning.problem.keys import LayerProblem, layer_outputs, lookup_keys
from zu_lightning.problem.latents import LatentOptions, Latents, neutral_targets, original_values
from zu_lightning.problem.moments import second_moments
from zu_lightning.timing import timed

log = logging.getLogger(__name__)

WIDTH_SHARE = 0.04
"""Above this n / d_out the directions that facts take away are felt by everything else (measured: see docs/demo.md)."""

DEFAULT_OPTIONS = LatentOptions()


@dataclass(frozen=True)
class Preparation:
    """What is known about the unedited model before the first layer is edited.

    Attributes:
        contexts: Texts put before prompts, the first one empty.
        second_moments: C of every layer to edit, d_in x d_in.
        targets: The neutral targets z*; the share of ``original_lost`` is the ceiling of every rule.
    """

    contexts: tuple[str, ...]
    second_moments: dict[int, Tensor]
    targets: Latents


@dataclass(frozen=True)
class UnlearnResult:
    """What :func:`unlearn` did.

    Attributes:
        targets: The neutral targets; the share of ``original_lost`` is the ceiling of every rule.
        edits: For each layer, what was written.
    """

    targets: Latents
    edits: dict[int, EditReport]


def unlearn(
    lm: EditableLM,
    facts: Sequence[Fact],
    corpus: Iterable[str],
    layers: Sequence[int],
    rule: Rule,
    *,
    neutral: str = "unknown",
    options: LatentOptions = DEFAULT_OPTIONS,
    optimise_values: bool = True,
    progress: bool = False,
) -> UnlearnResult:
    """Make a model forget facts, in place.

    Args:
        lm: The model; ``lm.model`` holds the edited weights afterwards.
        facts: What to forget.
        corpus: Retain text, one document each; documents that name a forgotten subject are left out.
        layers: Layers to edit, lowest first.
        rule: The closed form.
        neutral: What the model should answer instead.
        options: Of the latent optimisation.
        optimise_values: Whether V is optimised for the true answers (the paper) or observed (``V = W K``).
        progress: Whether to show progress bars.

    Returns:
        The targets that were reached and what was written.

    Raises:
        InputError: A layer does not exist or there is no retain text.
        ValueError: A rule cannot be solved; layers before it keep their edits.
    """
    known = prepare(lm, facts, retain_documents(corpus, facts), layers, neutral, options=options, progress=progress)
    edits = {}
    for layer in layers:
        problem = layer_problem(
            lm, facts, layer, layers, known, options=options, optimise_values=optimise_values, progress=progress
        )
        edits[layer] = lm.apply(layer, rule(lm.weight(layer), problem))
    return UnlearnResult(known.targets, edits)


def prepare(
    lm: EditableLM,
    facts: Sequence[Fact],
    documents: Sequence[str],
    layers: Sequence[int],
    neutral: str,
    *,
    options: LatentOptions = DEFAULT_OPTIONS,
    seed: int = 0,
    max_length: int = 512,
    max_tokens: int = 2048,
    token_budget: int | None = None,
    cache: Path | None = None,
    known: Preparation | None = None,
    seconds: dict[str, float] | None = None,
    progress: bool = False,
) -> Preparation:
    """Read what the layers' problems need from the unedited model.

    Args:
        lm: The model, unedited.
        facts: What to forget.
        documents: Retain text.
        layers: Layers to edit, lowest first.
        neutral: What the model should answer instead.
        options: Of the latent optimisation.
        seed: Seed of the context templates.
        max_length: Most tokens of a document that are read.
        max_tokens: Most tokens in a batch of retain text.
        token_budget: Tokens after which the retain text is read no further; all of it by default.
        cache: Folder in which second moments are looked for and kept.
        known: Contexts and targets of an earlier run, which are then not found again.
        seconds: Where the seconds of the phases ``moments`` and ``targets`` are added.
        progress: Whether to show progress bars.

    Returns:
        Contexts, second moments and neutral targets.

    Raises:
        InputError: A layer does not exist, there is no retain text, or a prompt is too long.
    """
    seconds = {} if seconds is None else seconds
    check_layers(layers, len(lm.layers))
    _warn_of_width(lm, len(facts), layers)
    if lm.normalises_mlp_output:
        log.warning(
            "this architecture normalises the MLP's output before adding it to the hidden state: the residual that a "
            "rule gives to the projection does not arrive unchanged, and edits are weaker or stronger than asked for."
        )
    contexts = known.contexts if known else sample_contexts(lm, seed=seed)
    longest = max(contexts, key=lambda context: len(lm.tokenizer(context)["input_ids"]))
    for fact in facts:
        texts = [tokenize_fact(lm.tokenizer, fact, context=longest, answer=word) for word in (neutral, fact.target)]
        check_lengths(texts, [f"fact {fact.id!r} with an answer behind a context"] * 2, lm.context_length)
    with timed(seconds, "moments"):
        moments = second_moments(
            lm, documents, layers, max_length=max_length, max_tokens=max_tokens, token_budget=token_budget, cache=cache,
            progress=progress,
        )  # fmt: skip
    if known:
        return replace(known, second_moments=moments)
    with timed(seconds, "targets"):
        targets = neutral_targets(lm, facts, layers[-1], neutral, contexts, options, progress=progress)
    log.info(
        "neutral targets: reachable for %.0f %% of the facts (the answer is gone with z* put in by hand: the ceiling "
        "of every rule); mean probability of %r there %.3f",
        100 * targets.original_lost.double().mean(), neutral, targets.probability.mean(),
    )  # fmt: skip
    return Preparation(contexts, moments, targets)


def layer_problem(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    layers: Sequence[int],
    known: Preparation,
    *,
    options: LatentOptions = DEFAULT_OPTIONS,
    optimise_values: bool = True,
    progress: bool = False,
) -> LayerProblem:
    """What a rule has to solve at ``layer``, with the layers below it already edited.

    Args:
        lm: The model in its present state.
        facts: n facts to forget.
        layer: The layer to edit now.
        layers: All layers to edit, lowest first.
        known: Of the unedited model.
        options: Of the latent optimisation.
        optimise_values: Whether V is optimised or observed.
        progress: Whether to show a progress bar.

    Returns:
        Keys, residuals, values and second moment, float64.
    """
    keys = lookup_keys(lm, facts, layer, known.contexts)
    if optimise_values:
        values = original_values(lm, facts, layer, known.contexts, options, progress=progress)
        bias = lm.bias(layer)
        if bias is not None:
            values = values - bias.double()[:, None]
    else:
        values = lm.weight(layer).double() @ keys
    layers_left = len(layers) - list(layers).index(layer)
    residuals = (known.targets.optimum - layer_outputs(lm, facts, layers[-1])) / layers_left
    return LayerProblem(layer, keys, residuals, values, known.second_moments[layer])


def retain_documents(corpus: Iterable[str], forget: Sequence[Fact]) -> list[str]:
    """The documents that are not empty and name no forgotten subject: what should go must not be held in place."""
    subjects = {fact.subject for fact in forget if fact.subject}
    return [text for text in corpus if text.strip() and not any(subject in text for subject in subjects)]


def _warn_of_width(lm: EditableLM, facts: int, layers: Sequence[int]) -> None:
    """Log a warning if so many facts cannot be forgotten without being felt elsewhere."""
    width = lm.weight(layers[0]).shape[0]
    if facts > WIDTH_SHARE * width:
        log.warning(
            "%d facts are %.0f %% of the model's width %d: beyond %.0f %% forgetting is felt by everything else the "
            "layer writes. Expect a price in specificity and retained facts, or forget fewer at a time.",
            facts, 100 * facts / width, width, 100 * WIDTH_SHARE,
        )  # fmt: skip
