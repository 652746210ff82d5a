"""Losses of gradient methods, by hand on answers of two tokens."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zu_lightning import NPO, RMU, FineTuning, GradientAscent, GradientDifference, GradientMethod, InputError, SimNPO
from zu_lightning.gradient.method import Answers, Mean, Part, joined, sequence_nll

ROWS = torch.tensor([0, 0, 1])
"""An answer of two tokens, and one of a single token."""
TOKENS = torch.tensor([0, 2, 1])
PARTS: tuple[Part, ...] = ("forget", "neutral", "retain")
LOSSES = [
    GradientAscent(),
    GradientDifference(),
    GradientDifference(divergence=True),
    NPO(),
    SimNPO(),
    RMU(),
    FineTuning(),
]


class Toy:
    """A "model" whose logits and states are given for each part; what it was is the reference."""

    def __init__(self, logits: dict[Part, Tensor], reference: dict[Part, Tensor]) -> None:
        self.logits, self.reference = logits, reference

    def answers(self, part: Part, *, reference: bool = False) -> Answers:
        log_probability = (self.reference if reference else self.logits)[part].log_softmax(-1)
        return Answers(*sequence_nll(log_probability, TOKENS, ROWS, 2), log_probability)

    def states(self, part: Part, *, reference: bool = False) -> Tensor:
        return (self.reference if reference else self.logits)[part]


def random_logits(seed: int) -> dict[Part, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {part: torch.randn(3, 4, generator=generator, dtype=torch.float64) for part in PARTS}


def value(loss: GradientMethod, toy: Toy) -> Tensor:
    means = loss(toy)
    return joined(means, [mean.count for mean in means], 1)


def p(toy: Toy, part: Part, *, reference: bool = False) -> list[float]:
    """Probability of each answer token, by the definition of softmax."""
    logits = (toy.reference if reference else toy.logits)[part]
    return [
        math.exp(row[token]) / sum(math.exp(x) for x in row)
        for row, token in zip(logits.tolist(), TOKENS.tolist(), strict=True)
    ]


def nll(toy: Toy, part: Part, *, reference: bool = False) -> tuple[float, float]:
    """Of the two answers."""
    a, b, c = p(toy, part, reference=reference)
    return -math.log(a) - math.log(b), -math.log(c)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def divergence(toy: Toy) -> float:
    """KL(reference || model) per place of the retain part."""
    now, before = (logits["retain"].softmax(-1).flatten().tolist() for logits in (toy.logits, toy.reference))
    total: float = sum(r * math.log(r / q) for q, r in zip(now, before, strict=True))
    return total / 3


def rmu_by_hand(toy: Toy) -> float:
    direction = torch.rand(4, generator=torch.Generator().manual_seed(0))
    target = (20 * direction / direction.norm()).double()
    forget = ((toy.logits["forget"] - target) ** 2).mean()
    retain = ((toy.logits["retain"] - toy.reference["retain"]) ** 2).mean()
    return float(forget + retain)


BY_HAND: list[tuple[GradientMethod, Callable[[Toy], float]]] = [
    (GradientAscent(), lambda t: -sum(nll(t, "forget")) / 3),
    (GradientDifference(), lambda t: (sum(nll(t, "retain")) - sum(nll(t, "forget"))) / 3),
    (GradientDifference(divergence=True), lambda t: divergence(t) - sum(nll(t, "forget")) / 3),
    (
        NPO(retain_weight=0.0, beta=0.3),
        lambda t: -2 / 0.3 * sum(
            math.log(sigmoid(0.3 * (now - before)))
            for now, before in zip(nll(t, "forget"), nll(t, "forget", reference=True), strict=True)
        ) / 2,
    ),
    (
        SimNPO(retain_weight=0.5, beta=2.0, delta=0.1),
        lambda t: -2 / 2.0 * sum(
            math.log(sigmoid(2.0 * (now / length - 0.1))) for now, length in zip(nll(t, "forget"), (2, 1), strict=True)
        ) / 2 + 0.5 * sum(nll(t, "retain")) / 3,
    ),
    (RMU(), rmu_by_hand),
    (FineTuning(), lambda t: sum(nll(t, "neutral")) / 3),
]  # fmt: skip


@pytest.mark.parametrize(("loss", "by_hand"), BY_HAND, ids=[type(loss).__name__ for loss, _ in BY_HAND])
def test_a_loss_is_what_its_paper_says(loss: GradientMethod, by_hand: Callable[[Toy], float]) -> None:
    toy = Toy(random_logits(0), random_logits(1))
    assert value(loss, toy).item() == pytest.approx(by_hand(toy), rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)
def test_its_gradient_is_a_finite_difference(loss: GradientMethod) -> None:
    start, reference = random_logits(2), random_logits(3)

    def at(forget: Tensor, neutral: Tensor, retain: Tensor) -> Tensor:
        return value(loss, Toy({"forget": forget, "neutral": neutral, "retain": retain}, reference))

    assert torch.autograd.gradcheck(at, [start[part].requires_grad_() for part in PARTS])


def test_npo_tends_to_gradient_ascent_as_beta_tends_to_zero() -> None:
    reference = random_logits(5)

    def gradient(loss: GradientMethod) -> Tensor:
        logits = random_logits(4)
        value(loss, Toy(logits | {"forget": logits["forget"].requires_grad_()}, reference)).backward()  # type: ignore[no-untyped-call]
        found = logits["forget"].grad
        assert found is not None
        return found

    per_answer = gradient(GradientAscent()) * 3 / 2  # NPO means over answers, GA over tokens
    far, near = (gradient(NPO(retain_weight=0.0, beta=beta)) - per_answer for beta in (1.0, 1e-6))
    assert far.norm() > 0.1 * per_answer.norm()
    assert near.norm() < 1e-5 * per_answer.norm()


def test_shares_of_processes_add_up_to_the_whole() -> None:
    totals, counts, weight = [5.0, 2.0, 0.0], [3, 1, 0], 0.7
    shares = [joined([Mean(torch.tensor(t), c, weight)], [sum(counts)], 3) for t, c in zip(totals, counts, strict=True)]
    assert torch.stack(shares).mean().item() == pytest.approx(weight * sum(totals) / sum(counts))


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"beta": 0.0}, {"beta": math.nan}, {"retain_weight": -0.1}])
def test_meaningless_weights_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"NPO\.{next(iter(options))} is"):
        NPO(**options)
