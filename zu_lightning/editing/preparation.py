"""The road from facts to the problem of a layer."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from zu_lightning.editing.keys import VariedKeys, layer_outputs, mean_keys, varied_keys
from zu_lightning.editing.latents import NeutralTargets, Others, TargetOptions, neutral_targets, original_values
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.moments import second_moments
from zu_lightning.editing.previous import with_previous
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.request import Request
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.relations import examples, rephrased
from zu_lightning.facts.unknown_subjects import unknown_subjects_for
from zu_lightning.lm.architecture import check_layers
from zu_lightning.lm.contexts import CONTEXT_STARTS, sample_contexts
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.tokens import Prompt, check_lengths, tokenize_all
from zu_lightning.runtime.errors import InputError
from zu_lightning.runtime.timing import Monitor

log = logging.getLogger(__name__)

WIDTH_SHARE = 0.04
"""Above this n / d_out, removing the facts' directions affects everything else (measured on the demo)."""


@dataclass(frozen=True)
class Preparation:
    """What is read from the unedited model before the first layer is edited.

    Attributes:
        targets: The neutral targets z*.
        second_moments: C of every layer to edit, d_in x d_in.
    """

    targets: NeutralTargets
    second_moments: dict[int, Tensor]


def prepare(
    lm: EditableLM,
    request: Request,
    layers: Sequence[int],
    options: TargetOptions,
    targets: NeutralTargets | None = None,
    monitor: Monitor | None = None,
) -> Preparation:
    """Read what the layers' problems need from the unedited model.

    Args:
        lm: The model, unedited.
        request: What to forget and what to keep.
        layers: Layers to edit, lowest first.
        options: What edits aim at.
        targets: Targets of an earlier run, which are then not optimized again.
        monitor: Times the phases ``moments`` and ``targets``, and shows progress.

    Returns:
        Neutral targets and second moments.

    Raises:
        InputError: A layer does not exist, there is no retain text, or a prompt is too long.
    """
    monitor = monitor or Monitor()
    check_layers(layers, len(lm.layers))
    _warn(lm, request.size, layers)
    starts = CONTEXT_STARTS[: options.latents.contexts - 1]
    contexts = targets.contexts if targets else sample_contexts(lm, starts, seed=request.seed)
    variants = prompt_variants(request, contexts, options)
    _check_lengths(lm, request, variants, options.neutral_target)
    with monitor.timed("moments"):
        cache = open_cache(request.cache, lm)
        moments = second_moments(lm, request.text, layers, monitor, cache)
    if targets is None:
        with monitor.timed("targets"):
            number = options.latents.unknown_subjects
            unknown_subjects = _unknown_subjects(request, number) if options.target == "reference" else ()
            others = Others(unknown_subjects, _same_subject_facts(request), variants.rephrased)
            optimized = partial(neutral_targets, lm, request.forget, layers[-1], contexts, options, others, monitor)
            aim = others if others.unknown_subjects else (options.neutral_target, others)
            decisive = (list(request.forget), layers[-1], contexts, aim, options.latents)
            rows = cache.rows("targets", lambda: optimized().rows(), len(request.forget), *decisive)
            targets = NeutralTargets.of(contexts, rows)
        log.info(
            "neutral targets: put in directly, they take the answer away for %.0f%% of the facts, the most that any "
            "edit can reach", 100 * targets.original_lost.double().mean(),
        )  # fmt: skip
    return Preparation(targets, moments)


def layer_problem(
    lm: EditableLM,
    request: Request,
    layer: int,
    layers: Sequence[int],
    preparation: Preparation,
    options: TargetOptions,
    monitor: Monitor | None = None,
) -> LayerProblem:
    """What a rule has to solve at ``layer``, with the layers below it already edited.

    Args:
        lm: The model in its present state.
        request: n facts to forget, and what to keep.
        layer: The layer to edit now.
        layers: All layers to edit, lowest first.
        preparation: What was read from the unedited model.
        options: What edits aim at.
        monitor: Times the phase ``keys_and_values``, and shows progress.

    Returns:
        Keys, residuals, values, second moment, protected keys, and how keys vary, float64; of several processes each
        gets the columns of its share of the facts.
    """
    monitor = monitor or Monitor()
    targets, facts = preparation.targets, request.forget
    with monitor.timed("keys_and_values"):
        # Edits below this layer decide about its keys, and all edits about what the layers above make of them.
        cache, contexts = open_cache(request.cache, lm, layers), targets.contexts

        variants = prompt_variants(request, contexts, options)

        def keys_of(some: Sequence[Fact]) -> Tensor:
            computed = partial(mean_keys, lm, some, layer, variants)
            return columns("keys", computed, some, layer, variants)

        def columns(kind: str, computed: Callable[[], Tensor], some: Sequence[Fact], *parts: object) -> Tensor:
            return cache.rows(kind, lambda: computed().mT, len(some), list(some), *parts).mT

        if options.latents.average_over_prompts:
            varied = partial(varied_keys, lm, facts, layer, variants)
            rows = cache.rows("varied_keys", lambda: varied().rows(), len(facts), list(facts), layer, variants)
            keys, deviations = vars(VariedKeys.of(rows)).values()
        else:
            keys, deviations = keys_of(facts), None
        if options.optimize_values:
            optimized = partial(original_values, lm, facts, layer, contexts, options.latents, monitor)
            values = columns("values", optimized, facts, layer, contexts, options.latents)
            bias = lm.bias(layer)
            if bias is not None:
                values = values - bias.double()[:, None]
        else:
            values = lm.weight(layer).double() @ keys
        layers_left = len(layers) - list(layers).index(layer)
        top = layers[-1]
        outputs = columns("outputs", partial(layer_outputs, lm, facts, top), facts, top)
        residuals = (targets.optimum - outputs) / layers_left
        protected = keys_of(request.protect) if request.protect else None
    moment = preparation.second_moments[layer]
    problem = LayerProblem(layer, keys, residuals, values, moment, protected, deviations, eigh=cache.eigh)
    return with_previous(problem, lm, request.earlier, contexts)


def prompt_variants(request: Request, contexts: Sequence[str], options: TargetOptions) -> PromptVariants:
    """How the facts of a request are put when their keys are read."""
    return PromptVariants(contexts, _rephrased(request, options), _examples(request, options))


def _unknown_subjects(request: Request, number: int) -> list[tuple[str, ...]]:
    """For each fact to forget the subjects of whom its references are made; without a file a number is made up."""
    for fact in request.forget:
        if fact.subject is None:
            remedy = f"fact {fact.id!r} has no subject to put a unknown subject in the place of: set it to `word`."
            raise InputError("target", "reference", remedy)
    if request.unknown_subjects:
        return [tuple(request.unknown_subjects)] * len(request.forget)
    texts = [*request.text.corpus, *request.heldout]
    return unknown_subjects_for(request.forget, request.all_facts, number, request.seed, texts)


def _rephrased(request: Request, options: TargetOptions) -> dict[str, tuple[Fact, ...]]:
    """For each fact to forget the same in the prompts of other facts."""
    return rephrased(request.forget, request.all_facts, options.latents.templates, request.seed)


def _examples(request: Request, options: TargetOptions) -> dict[str, tuple[str, ...]]:
    """For each fact to forget contexts of facts about others, none of which is in the retain set."""
    watched = {fact.id for fact in request.retain}
    known = [fact for fact in request.all_facts if fact.id not in watched]
    return examples(request.forget, known, options.latents.examples, request.seed)


def _same_subject_facts(request: Request) -> dict[str, list[Fact]]:
    """For each fact to forget that has some, the facts about its subject of which what is said must stay."""
    about: dict[str | None, list[Fact]] = {}
    for fact in (*request.protect, *(fact for one in request.earlier for fact in one.facts)):
        about.setdefault(fact.subject, []).append(fact)
    return {fact.id: about[fact.subject] for fact in request.forget if fact.subject and fact.subject in about}


def _check_lengths(lm: EditableLM, request: Request, variants: PromptVariants, neutral_target: str) -> None:
    """Refuse facts that the model cannot read in the longest way to put them, with the longer of their answers."""
    asked, names = [], []
    for fact in (*request.forget, *request.protect):
        context, put = max(variants.of(fact), key=lambda way: len(way[0]) + len(way[1].prompt))
        asked += [Prompt.about(put, context=context, answer=answer) for answer in (neutral_target, fact.target)]
        names += [f"fact {fact.id!r} with an answer after a context"] * 2
    check_lengths(tokenize_all(lm.tokenizer, asked), names, lm.context_length)


def _warn(lm: EditableLM, facts: int, layers: Sequence[int]) -> None:
    """Log a warning if an edit will be felt elsewhere, or if it cannot have its exact strength."""
    width = lm.weight(layers[0]).shape[0]
    if facts > WIDTH_SHARE * width:
        log.warning(
            "%d facts are %.0f%% of the model's width %d: beyond %.0f%%, forgetting affects everything else that the "
            "layer writes. Expect lower specificity and fewer retained facts, or forget fewer at a time.",
            facts, 100 * facts / width, width, 100 * WIDTH_SHARE,
        )  # fmt: skip
    if lm.normalizes_mlp_output:
        log.warning(
            "this architecture normalizes the MLP's output before adding it to the hidden state: the residual that a "
            "rule gives to the projection does not arrive unchanged, and edits are weaker or stronger than asked for."
        )
