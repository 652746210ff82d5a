"""From facts to an edited model in one call: the library's front door. The Lightning pipeline takes the same steps."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from zu_lightning.contexts import sample_contexts
from zu_lightning.facts import Fact
from zu_lightning.keys import LayerProblem, layer_outputs, lookup_keys, second_moments
from zu_lightning.latents import LatentOptions, Latents, neutral_targets, original_values
from zu_lightning.lm import EditableLM, EditReport
from zu_lightning.rules import Rule

log = logging.getLogger(__name__)

WIDTH_SHARE = 0.04
"""Above this n / d_out the directions that facts take away are felt by everything else (measured: see docs)."""


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
    contexts: Sequence[str] | None = None,
    options: LatentOptions | None = None,
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
        contexts: Texts put before prompts, the first one empty; sampled from the model by default.
        options: Of the latent optimisation.
        optimise_values: Whether V is optimised for the true answers (the paper) or observed (``V = W K``).
        progress: Whether to show progress bars.

    Returns:
        The targets that were reached and what was written.

    Raises:
        InputError: A layer does not exist or there is no retain text.
        ValueError: A rule cannot be solved; layers before it keep their edits.
    """
    lm.check_layers(layers)
    options = options or LatentOptions()
    warn_of_width(lm, len(facts), layers)
    moments = second_moments(lm, retain_documents(corpus, facts), layers, progress=progress)
    contexts = contexts or sample_contexts(lm)
    targets = neutral_targets(lm, facts, layers[-1], neutral, contexts, options, progress=progress)
    edits = {}
    for layer in layers:
        problem = layer_problem(
            lm, facts, layer, layers, targets.optimum, moments[layer], contexts, options,
            optimise_values=optimise_values, progress=progress,
        )  # fmt: skip
        edits[layer] = lm.apply(layer, rule(lm.weight(layer), problem))
    return UnlearnResult(targets, edits)


def layer_problem(
    lm: EditableLM,
    facts: Sequence[Fact],
    layer: int,
    layers: Sequence[int],
    targets: Tensor,
    second_moment: Tensor,
    contexts: Sequence[str],
    options: LatentOptions,
    *,
    optimise_values: bool = True,
    progress: bool = False,
) -> LayerProblem:
    """What a rule has to solve at ``layer``, with the layers below it already edited.

    Args:
        lm: The model in its present state.
        facts: n facts to forget.
        layer: The layer to edit now.
        layers: All layers to edit, in order.
        targets: z*, d_out x n, hidden states wanted after the last of ``layers``.
        second_moment: C of ``layer``, d_in x d_in.
        contexts: Texts put before prompts.
        options: Of the latent optimisation.
        optimise_values: Whether V is optimised or observed.
        progress: Whether to show a progress bar.

    Returns:
        Keys, residuals, values and second moment, float64.
    """
    keys = lookup_keys(lm, facts, layer, contexts)
    left = len(layers) - list(layers).index(layer)
    if optimise_values:
        values = original_values(lm, facts, layer, contexts, options, progress=progress).optimum
    else:
        values = lm.weight(layer).double() @ keys
    residuals = (targets - layer_outputs(lm, facts, layers[-1])) / left
    return LayerProblem(layer, keys, residuals, values, second_moment)


def retain_documents(corpus: Iterable[str], forget: Sequence[Fact]) -> list[str]:
    """The documents that are not empty and name no forgotten subject: what should go must not be held in place."""
    subjects = {fact.subject for fact in forget if fact.subject}
    return [text for text in corpus if text.strip() and not any(subject in text for subject in subjects)]


def warn_of_width(lm: EditableLM, facts: int, layers: Sequence[int]) -> None:
    """Log a warning if so many facts cannot be forgotten without being felt elsewhere."""
    width = lm.weight(layers[0]).shape[0]
    if facts > WIDTH_SHARE * width:
        log.warning(
            "%d facts are %.0f %% of the model's width %d: beyond %.0f %% forgetting is felt by everything else the "
            "layer writes. Expect a price in specificity and retained facts, or forget fewer at a time.",
            facts, 100 * facts / width, width, 100 * WIDTH_SHARE,
        )  # fmt: skip


