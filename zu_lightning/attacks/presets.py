"""Presets of attacks, and how they are run on a model."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from zu_lightning.attacks.answers import answers_work, approximate_tokens
from zu_lightning.attacks.attack import Attack, QueryAttack, attack_together, cost_together
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.control import Control
from zu_lightning.attacks.extraction import Extraction
from zu_lightning.attacks.leak import Leak
from zu_lightning.attacks.lens import LogitLens
from zu_lightning.attacks.membership import Membership
from zu_lightning.attacks.memorization import Memorization
from zu_lightning.attacks.probe import Probe
from zu_lightning.attacks.prompting import FewShot, Prefix, Repeat, Reversed
from zu_lightning.attacks.quantization import BITS, Quantization
from zu_lightning.attacks.rank import Rank
from zu_lightning.attacks.relearning import BenignRelearning, Relearning
from zu_lightning.attacks.sampling import Sampling
from zu_lightning.attacks.truth_ratio import TruthRatio
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.lm.tokens import tokenize_all
from zu_lightning.lm.work import Work
from zu_lightning.runtime.cache import Cache, Tensors
from zu_lightning.runtime.timing import Monitor
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

Preset = Literal["none", "quick", "full"]
"""No attack; forward passes only, in seconds; or also sampling, quantization, and training."""


def attacks_of(
    preset: Preset,
    layers: int,
    updates: Mapping[int, LowRankUpdate] | None = None,
    reference: tuple[tuple[float, ...], ...] | None = None,
) -> list[Attack]:
    """The attacks of a preset.

    Args:
        preset: Which.
        layers: Number of the model's decoder layers.
        updates: What an edit added to weights, by layer, for attacks on a quantized base under an adapter; ``None`` if
            it is not known as low-rank factors.
        reference: Log-probabilities of a retain model, see :func:`zu_lightning.attacks.membership.reference`.
    """
    if preset == "none":
        return []
    quick: list[Attack] = [
        Rank(),
        Leak(),
        FewShot(),
        Prefix(),
        Repeat(),
        Reversed(),
        Memorization(),
        Extraction(),
        TruthRatio(),
        Membership(reference=reference),
        LogitLens(layers=layers),
        Probe(layers=layers, token="last"),
        Control(),
    ]
    if preset == "quick":
        return quick
    quantization = []
    for bits in BITS:
        if updates is not None:
            quantization.append(Quantization(bits=bits, variant="adapter", updates=updates))
        quantization.append(Quantization(bits=bits))
    return [
        *quick,
        Sampling(),
        *quantization,
        Relearning(learning_rate=1e-4, steps=30),
        Relearning(learning_rate=3e-4, steps=100),
        BenignRelearning(),
    ]


def chances(attacks: Sequence[Attack], context: AttackContext) -> dict[str, Tensor]:
    """By name, the score of each of n facts that a model has by chance, float64, of the scores that have one."""
    by_name = (item for attack in attacks for item in attack.chance(context).items())
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in by_name}


def run_attacks(
    lm: EditableLM,
    context: AttackContext,
    attacks: Sequence[Attack],
    cache: Cache | None = None,
    monitor: Monitor | None = None,
    name: str = "",
) -> dict[str, Tensor]:
    """Attack a model.

    Args:
        lm: The model; it is left unchanged.
        context: Inputs of the attacks.
        attacks: Which attacks.
        cache: Holds scores of the same model and context, so that a run that was killed does not attack again.
        monitor: Shows progress, in tokens that are processed.
        name: What to call the model in the log; nothing is logged without.

    Returns:
        By name, the score of each of n facts, float64, on the CPU.
    """
    cache = cache or open_cache(None, lm)
    asking, others = _apart(attacks)
    costs = [cost_together(asking, context), *(attack.cost(context) for attack in others)]
    if name and attacks:
        log.info("attacking %s: %d facts, about %d tokens", name, len(context.facts), sum(costs))
    with (monitor or Monitor()).bar("Attacks", sum(costs), "tokens") as bar:
        bar.set_postfix_str("queries")
        asked = cache.each("attack", asking, lambda some: attack_together(some, lm, context, bar.update), context)
        found: dict[Attack, Tensors] = dict(asked.items())
        for attack, cost in zip(others, costs[1:], strict=True):
            bar.set_postfix_str(attack.name)
            found[attack] = cache.tensors("attack", partial(attack, lm, context), context, attack)
            bar.update(cost)
    return {name: found[attack][name].cpu() for attack in attacks for name in sorted(found[attack])}


def attacks_work(lm: EditableLM, context: AttackContext, attacks: Sequence[Attack]) -> Work:
    """What attacking a model computes; apart from queries, it is known only approximately."""
    asking, others = _apart(attacks)
    facts = range(len(context.facts))
    queries = [query for attack in asking for i in facts for query in attack.queries(context, i)]
    prompts = [fact.prompt for fact in context.facts]
    exact = sum(len(text.ids) for text in tokenize_all(lm.tokenizer, prompts))
    tokens = sum(attack.cost(context) for attack in others) * exact / sum(map(approximate_tokens, prompts))
    batches = -(-tokens // context.batch_tokens)
    return answers_work(lm.tokenizer, queries, context.batch_tokens) + Work(tokens, passes=batches)


def _apart(attacks: Sequence[Attack]) -> tuple[list[QueryAttack], list[Attack]]:
    """Attacks that only ask, and others; one that changes the model has scores of its own."""
    asking = [one for one in attacks if isinstance(one, QueryAttack) and type(one).scores is QueryAttack.scores]
    return asking, [attack for attack in attacks if attack not in asking]
