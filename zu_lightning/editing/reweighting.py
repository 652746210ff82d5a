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
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import Prompt, collate, tokenize_all
from zu_lightning.lm.updates import edited
from zu_lightning.runtime.distributed import all_reduce, rank_shard, rank_slice
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

BATCH_TOKENS = 2048
KNOWN, RAISE = 0.1, 3.0
"""A fact whose answer is more probable than the first of these weighs more by the second in the next round. Those that
are long gone keep their weight: with less, more of them comes back in attacks."""


def solve_with_reweighting(
    lm: EditableLM, method: EditingMethod, problem: LayerProblem, facts: Sequence[Fact], variants: PromptVariants
) -> LowRankUpdate:
    """Solve a layer, see what is still known of each fact, weigh the facts anew, and solve again.

    Facts differ in how hard they are: at the same forgetting, weights for each of them cost less of what stays than
    one strength for all.

    Args:
        lm: The model, with all other layers in their final state; it is left as it was.
        method: Solves the layer; facts are reweighted ``method.reweighting_iterations`` times, fewer if none still has
            a high answer probability.
        problem: The layer's problem, n facts.
        facts: These facts, all of them on every process.
        variants: How they are put.

    Returns:
        The update of the last round.

    Raises:
        InputError: The rule cannot be solved.
        ValueError: An update holds NaN or infinite entries.
    """
    weight = lm.weight(problem.layer)
    weights = torch.ones(len(facts), dtype=torch.float64, device=lm.device)
    update = method(weight, problem)
    for number in range(1, method.reweighting_iterations + 1):
        with edited(lm, {problem.layer: update}):
            probability = answer_probability(lm, facts, variants)
        known = probability > KNOWN
        if not known.any():
            log.info("layer %d: no fact is answered with a probability above %g any more", problem.layer, KNOWN)
            break
        log.info(
            "layer %d: %d of %d facts are still answered with a probability above %g: they weigh more (round %d of %d)",
            problem.layer, known.sum(), len(facts), KNOWN, number, method.reweighting_iterations,
        )  # fmt: skip
        weights = weights * torch.where(known, RAISE, 1.0)
        # Facts of previous requests, after these, have arrived at their targets.
        of_share = pad(weights[rank_slice(len(facts))], (0, problem.previous), value=1.0)
        update = method(weight, replace(problem, fact_weights=of_share))
    return update


@torch.no_grad()
def answer_probability(lm: EditableLM, facts: Sequence[Fact], variants: PromptVariants) -> Tensor:
    """Probability of the first token of each fact's answer, a mean over the ways to put it: n, float64."""
    put, truth = variants.rows(facts), first_tokens(lm, facts)
    texts = tokenize_all(lm.tokenizer, [Prompt.about(one.fact, context=one.context) for one in put])
    position = torch.tensor([one.position for one in put], device=lm.device)
    found = torch.zeros(len(texts), dtype=torch.float64, device=lm.device)
    for indices in rank_shard(batches(texts, BATCH_TOKENS)):
        batch = collate([texts[i] for i in indices], lm.tokenizer).to(lm.device)
        rows = torch.arange(len(indices), device=lm.device)
        probability = lm.logits(batch, rows, batch.lengths - 1).softmax(-1)
        found[indices] = probability[rows, truth[position[indices]]].double()
    total = torch.zeros(len(facts), dtype=torch.float64, device=lm.device).index_add(0, position, all_reduce(found)[0])
    return total / position.bincount()
