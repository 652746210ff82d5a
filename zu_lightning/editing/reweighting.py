"""Reweighting: facts that still have a high answer probability are upweighted, and the layer is solved again."""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.editing.method import EditingMethod
from zu_lightning.editing.prompts import PromptVariants
from zu_lightning.editing.references import first_tokens
from zu_lightning.facts.fact import Fact
from zu_lightning.facts.texts import BATCH_TOKENS
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import next_token_probabilities
from zu_lightning.lm.tokens import tokenize_all
from zu_lightning.lm.updates import edited
from zu_lightning.runtime.distributed import all_reduce, rank_slice
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

KNOWN, RAISE = 0.1, 3.0
"""The weight of a fact with an answer probability above the first is multiplied by the second. The others keep theirs:
with less, attacks recover more of them."""


def solve_with_reweighting(
    lm: EditableLM,
    method: EditingMethod,
    problem: LayerProblem,
    facts: Sequence[Fact],
    variants: PromptVariants,
    batch_tokens: int = BATCH_TOKENS,
) -> LowRankUpdate:
    """Solve a layer, measure each fact's answer probability, upweight facts, and solve again.

    Facts differ in how hard they are to forget: at equal forgetting, a weight per fact costs less retention than one
    strength for all.

    Args:
        lm: The model, with all other layers in their final state; it is not changed.
        method: Solves the layer, again after each of at most ``reweighting_iterations``; none are made once no fact has
            a high answer probability.
        problem: The layer's problem, n facts.
        facts: These n facts, all of them on every process.
        variants: Their prompt variants.
        batch_tokens: Maximum number of tokens per batch.

    Returns:
        The last update.

    Raises:
        InputError: The layer has no solution.
        ValueError: An update holds NaN or infinite entries.
    """
    weight = lm.weight(problem.layer)
    weights = torch.ones(len(facts), dtype=torch.float64, device=lm.device)
    update = method(weight, problem)
    for number in range(1, method.reweighting_iterations + 1):
        with edited(lm, {problem.layer: update}):
            probability = answer_probability(lm, facts, variants, batch_tokens)
        remembered = probability > KNOWN
        if not remembered.any():
            log.info("layer %d: no fact has an answer probability above %g", problem.layer, KNOWN)
            break
        log.info(
            "layer %d: %d of %d facts still have an answer probability above %g; upweighting them (iteration %d of %d)",
            problem.layer, remembered.sum(), len(facts), KNOWN, number, method.reweighting_iterations,
        )  # fmt: skip
        weights = weights * torch.where(remembered, RAISE, 1.0)
        # Facts of previous requests, after these, have arrived at their targets.
        fact_weights = pad(weights[rank_slice(len(facts))], (0, problem.previous), value=1.0)
        update = method(weight, replace(problem, fact_weights=fact_weights))
    return update


@torch.no_grad()
def answer_probability(
    lm: EditableLM, facts: Sequence[Fact], variants: PromptVariants, batch_tokens: int = BATCH_TOKENS
) -> Tensor:
    """Probability of the first token of each fact's answer, a mean over its prompt variants: n, float64."""
    rows, truth = variants.rows(facts), first_tokens(lm, facts)
    texts = tokenize_all(lm.tokenizer, [row.prompt() for row in rows])
    position = torch.tensor([row.position for row in rows], device=lm.device)
    by_row = torch.zeros(len(texts), dtype=torch.float64, device=lm.device)
    for indices, probability in next_token_probabilities(lm, texts, batch_tokens, sharded=True):
        by_row[indices] = probability.gather(1, truth[position[indices], None])[:, 0].double()
    total = torch.zeros(len(facts), dtype=torch.float64, device=lm.device).index_add(0, position, all_reduce(by_row)[0])
    return total / position.bincount()
