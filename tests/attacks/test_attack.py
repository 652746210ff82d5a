"""What attacks share: options, ties, and processes without facts."""

import math
from typing import get_args

import pytest
import torch

from zu_lightning import EditableLM, InputError
from zu_lightning.attacks.attack import Attack, share_below
from zu_lightning.attacks.context import AttackContext
from zu_lightning.attacks.leak import Leak
from zu_lightning.attacks.lens import LogitLens
from zu_lightning.attacks.memorization import Memorization
from zu_lightning.attacks.presets import Preset, attacks_of
from zu_lightning.attacks.prompting import FewShot
from zu_lightning.attacks.quantization import Quantization
from zu_lightning.attacks.relearning import BenignRelearning, Relearning
from zu_lightning.attacks.sampling import Sampling


@pytest.mark.parametrize(
    ("attack", "option"),
    [
        (Leak, "samples"),
        (FewShot, "shots"),
        (LogitLens, "layers"),
        (Sampling, "temperature"),
        (Relearning, "steps"),
        (BenignRelearning, "learning_rate"),
    ],
)
def test_numbers_that_are_not_positive_are_refused(attack: type[Attack], option: str) -> None:
    with pytest.raises(InputError, match=rf"{attack.name}\.{option} is 0"):
        attack(**{option: 0})


def test_ties_count_half() -> None:
    assert share_below([2.0, 1.0, 2.0, 3.0]) == 0.5
    assert share_below([2.0 + 1e-6, 1.0, 2.0, 3.0], tie=1e-4) == 0.5, "what rounding in another batch does"
    assert share_below([2.0 + 1e-6, 1.0, 2.0, 3.0]) == pytest.approx(2 / 3)
    assert share_below([-math.inf, -math.inf]) == 0.5
    assert math.isnan(share_below([2.0]))


def test_processes_share_the_facts(base: EditableLM, context: AttackContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    for rank, own in ((1, [0, 1, 0, 0]), (5, [0, 0, 0, 0])):
        monkeypatch.setattr("zu_lightning.runtime.distributed.process", lambda rank=rank: (rank, 6))
        assert Memorization()(base, context)["memorization"].tolist() == own


def test_presets_hold_attacks_that_cost_something(context: AttackContext) -> None:
    none, quick, full = (attacks_of(preset, 3, {}) for preset in get_args(Preset))
    assert none == []
    assert quick == full[: len(quick)]
    assert min(attack.cost(context) for attack in full) > 0
    variants = [attack.variant for attack in full if isinstance(attack, Quantization)]
    assert variants == ["adapter", "merged"] * 2
    without_updates = attacks_of("full", 3)
    assert len(without_updates) == len(full) - 2
