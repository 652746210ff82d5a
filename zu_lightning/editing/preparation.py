"""Build each layer's editing problem from the facts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from zu_lightning.editing.keys import VariedKeys, layer_outputs, mean_keys, varied_keys
from zu_lightning.editing.latents import Aim, NeutralTargets, neutral_targets, original_values
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.method import EditingMethod
from zu_lightning.editing.moments import second_moments
from zu_lightning.editing.previous import with_previous
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.request import Request
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.unknown_subjects import unknown_subjects_for
from zu_lightning.lm.architecture import check_layers
from zu_lightning.lm.contexts import CONTEXT_STARTS, sample_contexts
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.tokens import check_lengths, tokenize_all
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor

log = logging.getLogger(__name__)

WIDTH_SHARE = 0.04
"""Above this n / d_out, removing the facts' directions affects everything else (measured on the demo)."""


@dataclass(frozen=True)
class Preparation:
    """What the layers' problems need from the unedited model.

    Attributes:
        layers: All layers to edit, lowest first.
        method: The method that edits them.
        variants: Prompt variants of the facts.
        targets: The neutral targets z*.
        second_moments: C of every layer, d_in x d_in.
    """

    layers: Sequence[int]
    method: EditingMethod
    variants: PromptVariants
    targets: NeutralTargets
    second_moments: dict[int, Tensor]


def prepare(
    lm: EditableLM,
    request: Request,
    layers: Sequence[int],
    method: EditingMethod,
    neutral_target: str = "unknown",
    targets: NeutralTargets | None = None,
    monitor: Monitor | None = None,
) -> Preparation:
    """Compute what the layers' problems need from the unedited model.

    Args:
        lm: The model, unedited.
        request: What to forget and what to preserve.
        layers: Layers to edit, lowest first.
        method: Says what edits aim at.
        neutral_target: The neutral answer.
        targets: Targets of an interrupted run, which are then not optimized again.
        monitor: Times the phases ``moments`` and ``targets``, and shows progress.

    Returns:
        Prompt variants, neutral targets, and second moments.

    Raises:
        InputError: A layer does not exist, there is no retain text, or a prompt is too long.
    """
    monitor = monitor or Monitor()
    check_layers(layers, len(lm.layers))
    _warn(lm, request.size, layers)
    if method.latents.average_over_prompts and method.weight_beside_moment is None:
        log.warning("%s has no retain term: latents.average_over_prompts has no effect on its solution.", method.name)
    variants = _prompt_variants(lm, request, method, targets)
    _check_lengths(lm, request, variants, neutral_target)
    with monitor.timed("moments"):
        cache = open_cache(request.cache, lm)
        moments = second_moments(lm, request.text, layers, monitor, cache)
    if targets is None:
        with monitor.timed("targets"):
            of_targets = replace(variants, examples={})
            aim, size = _aim(request, method, neutral_target), request.text.reading.batch_tokens
            optimized = partial(neutral_targets, lm, request.forget, layers[-1], of_targets, aim, method, monitor, size)
            decisive = (list(request.forget), layers[-1], of_targets, aim, *method.latent_settings)
            rows = cache.rows("targets", lambda: optimized().rows(), len(request.forget), *decisive)
            targets = NeutralTargets.of(tuple(variants.contexts), rows)
        log.info(
            "Neutral targets, patched in directly, remove the answer for %.0f%% of facts (the upper bound for any "
            "edit)", 100 * targets.original_lost.double().mean(),
        )  # fmt: skip
    return Preparation(layers, method, variants, targets, moments)


def layer_problem(
    lm: EditableLM, request: Request, layer: int, preparation: Preparation, monitor: Monitor | None = None
) -> LayerProblem:
    """The editing problem of a layer, once the layers below it are edited.

    Args:
        lm: The model in its present state.
        request: n facts to forget, and what to preserve.
        layer: The layer to edit now.
        preparation: What :func:`prepare` gave for all layers.
        monitor: Times the phase ``keys_and_values``, and shows progress.

    Returns:
        Keys, residuals, values, second moment, protected keys, and how keys vary, float64; of several processes each
        gets the columns of its shard of the facts.
    """
    monitor = monitor or Monitor()
    layers, method, variants, facts = preparation.layers, preparation.method, preparation.variants, request.forget
    batch_tokens = request.text.reading.batch_tokens
    with monitor.timed("keys_and_values"):
        # The keys depend on edits below this layer, the outputs on all edits.
        cache = open_cache(request.cache, lm, layers)

        def columns(kind: str, compute: Callable[[], Tensor], some: Sequence[Fact], *parts: object) -> Tensor:
            return cache.rows(kind, lambda: compute().mT, len(some), list(some), *parts).mT

        def keys_of(some: Sequence[Fact]) -> Tensor:
            return columns("keys", partial(mean_keys, lm, some, layer, variants, batch_tokens), some, layer, variants)

        if method.latents.average_over_prompts:
            varied = partial(varied_keys, lm, facts, layer, variants, batch_tokens)
            rows = cache.rows("varied_keys", lambda: varied().rows(), len(facts), list(facts), layer, variants)
            keys, deviations = vars(VariedKeys.of(rows)).values()
        else:
            keys, deviations = keys_of(facts), None
        if method.needs_values:
            optimized = partial(original_values, lm, facts, layer, variants.contexts, method, monitor)
            decisive = (layer, variants.contexts, *method.latent_settings)
            values, bias = columns("values", optimized, facts, *decisive), lm.bias(layer)
            if bias is not None:
                values = values - bias.double()[:, None]
        else:
            values = lm.weight(layer).double() @ keys
        top, layers_left = layers[-1], len(layers) - list(layers).index(layer)
        outputs = columns("outputs", partial(layer_outputs, lm, facts, top, batch_tokens), facts, top)
        residuals = (preparation.targets.optimum - outputs) / layers_left
        protected = keys_of(request.protect) if request.protect else None
    moment = preparation.second_moments[layer]
    problem = LayerProblem(layer, keys, residuals, values, moment, protected, deviations, eigh=cache.eigh)
    return with_previous(problem, lm, request.previous, variants.contexts)


def _prompt_variants(
    lm: EditableLM, request: Request, method: EditingMethod, targets: NeutralTargets | None
) -> PromptVariants:
    """Context templates, prompts of the same relation, and few-shot contexts, none of which names a measured fact."""
    latents, relations = method.latents, request.relations
    starts = CONTEXT_STARTS[: latents.contexts - 1]
    contexts = targets.contexts if targets else sample_contexts(lm, starts, seed=request.seed)
    measured = {fact.id for fact in request.retain}
    return PromptVariants(
        contexts,
        relations.rephrased(request.forget, latents.templates, request.seed),
        relations.examples(request.forget, latents.examples, request.seed, without=measured),
    )


def _aim(request: Request, method: EditingMethod, neutral_target: str) -> Aim:
    """What neutral targets make the model predict."""
    kept = same_subject_facts(request)
    if method.target_kind == "word":
        return Aim(neutral_target, same_subject_facts=kept)
    for fact in request.forget:
        if fact.subject is None:
            remedy = f"fact {fact.id!r} has no subject to put an unknown subject in the place of: set it to `word`."
            raise InputError("target_kind", "reference", remedy)
    number = method.latents.unknown_subjects
    if request.unknown_subjects:
        names = [tuple(request.unknown_subjects)] * len(request.forget)
    else:
        texts = [*request.text.corpus, *request.heldout]
        names = unknown_subjects_for(request.forget, request.relations, number, request.seed, texts)
    return Aim("", names, kept)


def same_subject_facts(request: Request) -> dict[str, list[Fact]]:
    """For each fact to forget that has some, the facts about its subject of which what is said must stay."""
    about: dict[str | None, list[Fact]] = {}
    for fact in (*request.protect, *(fact for previous in request.previous for fact in previous.facts)):
        about.setdefault(fact.subject, []).append(fact)
    return {fact.id: about[fact.subject] for fact in request.forget if fact.subject and fact.subject in about}


def _check_lengths(lm: EditableLM, request: Request, variants: PromptVariants, neutral_target: str) -> None:
    """Refuse facts that do not fit into the model's context in their longest variant, with the longer answer."""
    prompts, names = [], []
    for fact in (*request.forget, *request.protect):
        prompts += [variants.longest(fact, answer) for answer in (neutral_target, fact.target)]
        names += [f"fact {fact.id!r} with an answer after a context"] * 2
    check_lengths(tokenize_all(lm.tokenizer, prompts), names, lm.context_length)


def _warn(lm: EditableLM, facts: int, layers: Sequence[int]) -> None:
    """Log a warning if an edit affects everything else, or if it cannot have its exact strength."""
    width = lm.weight(layers[0]).shape[0]
    if facts > WIDTH_SHARE * width:
        log.warning(
            "%d facts are %.0f%% of the model's width %d: beyond %.0f%%, forgetting affects everything else that the "
            "layer writes. Expect lower specificity and fewer retained facts, or forget fewer at a time.",
            facts, 100 * facts / width, width, 100 * WIDTH_SHARE,
        )  # fmt: skip
    if lm.normalizes_mlp_output:
        log.warning(
            "this architecture normalizes the MLP's output before adding it to the hidden state: the residual given to "
            "the projection does not arrive unchanged, and edits are weaker or stronger than intended."
        )
