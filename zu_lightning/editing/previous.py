"""The facts of previous requests in the problem of a later one: what the model says about them must stay as it is."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from zu_lightning.editing.keys import mean_keys
from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.request import PreviousLayer, PreviousRequest
from zu_lightning.lm.editable import EditableLM
from zu_lightning.runtime.distributed import rank_slice

log = logging.getLogger(__name__)


def with_previous(
    problem: LayerProblem, lm: EditableLM, previous: Sequence[PreviousRequest], contexts: Sequence[str]
) -> LayerProblem:
    """A layer's problem with the facts of previous requests as more columns.

    Their residuals are zero: the outputs at their keys, neutral by now, stay as they are. Their values stay in the span
    of what is removed. So a method treats them as it treats facts that have arrived at their targets, with one weight
    for all.

    Args:
        problem: Of the n facts of the request.
        lm: The model in its present state.
        previous: Previous requests, m facts together. Their keys are those with which they were solved; if they did not
            edit this layer, keys are read anew from the texts, if those were kept.
        contexts: Texts to put before their prompts then.

    Returns:
        The problem of n + m facts, of which this process has its shares.
    """
    device = problem.keys.device
    layers = [found for one in previous if (found := _at_layer(one, problem, lm, contexts))]
    if not layers:
        return problem
    keys = [one.keys.to(device) for one in layers]
    deviations = problem.deviations
    if deviations is not None:
        known = [
            key.new_zeros(*key.shape, 0) if one.deviations is None else one.deviations.to(device)
            for key, one in zip(keys, layers, strict=True)
        ]
        ways = max(some.shape[2] for some in (deviations, *known))
        deviations = torch.cat([pad(some, (0, ways - some.shape[2])) for some in (deviations, *known)], 1)
    count = sum(key.shape[1] for key in keys)
    return replace(
        problem,
        keys=torch.cat([problem.keys, *keys], 1),
        residuals=pad(problem.residuals, (0, count)),
        values=torch.cat([problem.values, *(one.values.to(device) for one in layers)], 1),
        deviations=deviations,
        previous=count,
    )


def _at_layer(
    request: PreviousRequest, problem: LayerProblem, lm: EditableLM, contexts: Sequence[str]
) -> PreviousLayer | None:
    """What is known of a previous request at the layer of a problem: this process's share of its facts."""
    if problem.layer in request.layers:
        found = request.layers[problem.layer]
        own = rank_slice(found.keys.shape[1])
        deviations = None if found.deviations is None else found.deviations[:, own]
        return replace(found, keys=found.keys[:, own], values=found.values[:, own], deviations=deviations)
    if not request.facts:
        log.warning(
            "request %d did not edit layer %d, and its texts were not kept: what the model says about its facts may "
            "change here.", request.number, problem.layer,
        )  # fmt: skip
        return None
    keys: Tensor = mean_keys(lm, request.facts, problem.layer, PromptVariants(contexts))
    some = next(iter(request.layers.values()))
    nothing = problem.values.new_zeros(len(problem.values), keys.shape[1])
    return PreviousLayer(some.update, some.scores, keys, nothing)
