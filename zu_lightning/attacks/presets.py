"""The suites: which attacks are run, on which model, and what is kept of them."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

from torch import Tensor

from zu_lightning.attacks.attack import Attack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.control import Control
from zu_lightning.attacks.extraction import Extraction
from zu_lightning.attacks.leak import Leak
from zu_lightning.attacks.lens import LogitLens
from zu_lightning.attacks.membership import Membership
from zu_lightning.attacks.memorization import Memorization
from zu_lightning.attacks.probe import Probe
from zu_lightning.attacks.prompting import Prompting
from zu_lightning.attacks.quantization import Quantization
from zu_lightning.attacks.rank import Rank
from zu_lightning.attacks.relearning import BenignRelearning, Relearning
from zu_lightning.attacks.sampling import Sampling
from zu_lightning.attacks.truth_ratio import TruthRatio
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import open_cache
from zu_lightning.runtime.cache import Cache
from zu_lightning.runtime.timing import Monitor
from zu_lightning.solvers import LowRankUpdate

log = logging.getLogger(__name__)

Suite = Literal["none", "quick", "full"]
"""No attack; those that take seconds; or those that sample, round, and train, too."""


def attacks_of(
    suite: Suite,
    layers: int,
    updates: Mapping[int, LowRankUpdate] | None = None,
    gold: tuple[tuple[float, ...], ...] | None = None,
) -> list[Attack]:
    """The attacks of a suite.

    Args:
        suite: Which.
        layers: Number of the model's decoder layers.
        updates: What an edit added to weights, by layer, for attacks on a quantized base under an adapter.
        gold: What a model that never knew says, see :func:`zu_lightning.attacks.membership.reference`.
    """
    if suite == "none":
        return []
    quick: list[Attack] = [
        Rank(),
        Leak(),
        Prompting(),
        Memorization(),
        Extraction(),
        TruthRatio(),
        Membership(gold=gold),
        LogitLens(layers=layers),
        Probe(layers=layers, token="last"),
        Control(),
    ]
    if suite == "quick":
        return quick
    return [
        *quick,
        Sampling(),
        Quantization(bits="int8", updates=updates),
        Quantization(bits="nf4", updates=updates),
        Relearning(learning_rate=1e-4, steps=30),
        Relearning(learning_rate=3e-4, steps=100),
        BenignRelearning(),
    ]


def run_attacks(
    lm: EditableLM,
    exam: AttackContext,
    attacks: Sequence[Attack],
    cache: Cache | None = None,
    monitor: Monitor | None = None,
    name: str = "",
) -> dict[str, Tensor]:
    """Attack a model.

    Args:
        lm: The model; it is left as it was.
        exam: What attackers know and ask.
        attacks: Which attacks.
        cache: Where scores of the same model and exam are looked for and kept, so that a run that was killed does
            not attack again.
        monitor: Shows progress, in tokens that are read.
        name: What to call the model in the log; nothing is logged without.

    Returns:
        By name, the score of each of n facts, float64, on the CPU.
    """
    cache, scores = cache or open_cache(None, lm), dict[str, Tensor]()
    costs = [attack.tokens(exam) for attack in attacks]
    if name and attacks:
        log.info("attacking %s: %d facts, about %d tokens to read", name, len(exam.facts), sum(costs))
    with (monitor or Monitor()).bar("Attacks", sum(costs), "tokens") as bar:
        for attack, cost in zip(attacks, costs, strict=True):
            bar.set_postfix_str(attack.name)
            found = cache.tensors("attack", partial(_attacked, attack, lm, exam), attack, exam)
            scores |= {score: found[score].cpu() for score in sorted(found)}
            bar.update(cost)
    return scores


def _attacked(attack: Attack, lm: EditableLM, exam: AttackContext) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in attack(lm, exam).items()}
