"""Gradient methods: small objects that turn a model's answers to a batch into means to minimize.

Every loss is a sum of weighted means over sequences, tokens, or states. It is given as numerators and counts, so that
processes with unequal shares of a batch add up to the mean over the whole batch.

Symbols: NLL is the negative log-likelihood of an answer, summed over its tokens, in nats; a subscript r marks the
reference, the model before training.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import kl_div, logsigmoid

from zu_lightning.editing.method import Method
from zu_lightning.runtime.errors import InputError, require_positive

Part = Literal["forget", "neutral", "retain"]
"""Prompts to forget with their true answers, the same prompts with the neutral answer, and what to keep."""


WeightChoice = Literal["projections", "all", "lora"]
"""What is trained: the output projections of the edited layers, all weights, or a LoRA adapter."""


@dataclass(frozen=True)
class TrainingOptions:
    """How a gradient method trains: AdamW, with linear warm-up and linear decay."""

    epochs: int = 10
    """Number of times that each fact is seen."""
    batch_size: int = 32
    """Number of facts per step, over all processes; as many facts or documents to keep go with them."""
    learning_rate: float = 0.01
    """Peak of the schedule; with ``scale_free`` in units of the root mean square of the trained weights,
    so that it suits models of any size."""
    scale_free: bool = True
    """Whether the learning rate is relative to the size of the trained weights."""
    warmup_epochs: float = 1.0
    """Number of epochs until the peak."""
    decay: bool = True
    """Whether the learning rate decays linearly after the warm-up, to zero in the last step, or stays."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay."""
    retain_length: int = 64
    """Maximum number of tokens of a document to keep."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be trained with."""
        for name in ("epochs", "batch_size", "learning_rate", "retain_length"):
            require_positive(f"training.{name}", getattr(self, name))
        for name in ("warmup_epochs", "weight_decay"):
            require_positive(f"training.{name}", getattr(self, name), or_zero=True)

    def factor(self, epoch: float) -> float:
        """The learning rate's share of its peak, ``epoch`` epochs after the start."""
        warm = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs else 1.0
        rest = max(1e-9, self.epochs - self.warmup_epochs)
        return warm * (min(1.0, max(0.0, (self.epochs - epoch) / rest)) if self.decay else 1.0)


@dataclass(frozen=True)
class LoraOptions:
    """The adapter that is trained with ``weights: lora``."""

    rank: int = 8
    """Rank of the adapter."""
    alpha: float = 32.0
    """The product of the adapter's factors is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability with which an input of the adapter is dropped in training."""
    all_linear: bool = False
    """Whether all linear modules get an adapter, or only the output projections of the edited layers."""

    def __post_init__(self) -> None:
        """Refuse numbers that no adapter has."""
        for name in ("rank", "alpha"):
            require_positive(f"lora.{name}", getattr(self, name))
        if not 0 <= self.dropout < 1:
            raise InputError("lora.dropout", self.dropout, "give zero or a number below 1.")


@dataclass(frozen=True)
class Mean:
    """A weighted mean whose sum and count may be spread over processes.

    Attributes:
        total: Sum over this process's share, a scalar with a gradient.
        count: This process's part of the number that the sum over all processes is divided by.
        weight: Factor of the mean in the loss.
    """

    total: Tensor
    count: int
    weight: float = 1.0


@dataclass(frozen=True)
class Answers:
    """What a model says about the answers of a batch.

    Attributes:
        nll: Negative log-likelihood of each answer, summed over its tokens, rows.
        lengths: Number of tokens of each answer, rows.
        log_probability: Of all tokens of the vocabulary at the answers' places, places x vocabulary.
    """

    nll: Tensor
    lengths: Tensor
    log_probability: Tensor


class Views(Protocol):
    """What a loss may ask of the model and of its reference, for the batch of this step."""

    def answers(self, part: Part, *, reference: bool = False) -> Answers:
        """What the model says about the answers of a part; without gradients for the reference."""

    def states(self, part: Part, *, reference: bool = False) -> Tensor:
        """Outputs of the highest edited layer at all tokens of a part, tokens x width."""


def sequence_nll(log_probability: Tensor, tokens: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood and length of each answer.

    Args:
        log_probability: places x vocabulary, at the place before each answer token.
        tokens: Ids of the answer tokens, places.
        rows: Which answer each token belongs to, 0 to count - 1.
        count: Number of answers.

    Returns:
        NLL, summed over an answer's tokens, and number of tokens, each of ``count`` answers.
    """
    per_token = -log_probability.gather(1, tokens[:, None])[:, 0]
    none = torch.zeros(count, dtype=per_token.dtype, device=per_token.device)
    return none.index_add(0, rows, per_token), none.index_add(0, rows, torch.ones_like(per_token))


@dataclass(frozen=True, kw_only=True)
class GradientMethod(Method):
    """A method that trains weights of the language model by gradient descent on a loss.

    A new method defines :meth:`forget`.
    """

    module: ClassVar[str] = "zu_lightning.GradientModule"

    retain_weight: float = 0.0
    """Weight of the retain term; 0 leaves it out."""
    weights: WeightChoice = "projections"
    """What is trained: the output ``projections`` of the edited layers, ``all`` weights, or a ``lora`` adapter."""
    training: TrainingOptions = TrainingOptions()
    """How it is trained."""
    lora: LoraOptions = LoraOptions()
    """The adapter, if one is trained."""

    def __call__(self, views: Views) -> list[Mean]:
        """The means whose weighted sum is the loss."""
        retain = [self.retain(views)] if self.retain_weight else []
        return [self.forget(views), *retain]

    @property
    def uses_reference(self) -> bool:
        """Whether it compares with the model before training, of which a copy must then be kept."""
        return True

    @abstractmethod
    def forget(self, views: Views) -> Mean:
        """The term that makes the model forget."""

    def retain(self, views: Views) -> Mean:
        """The term that preserves everything else: by default cross-entropy per token."""
        return cross_entropy(views.answers("retain"), weight=self.retain_weight)


def cross_entropy(answers: Answers, weight: float = 1.0) -> Mean:
    """Mean negative log-likelihood per token."""
    return Mean(answers.nll.sum(), int(answers.lengths.sum()), weight)


def kl_divergence(now: Answers, reference: Answers, weight: float = 1.0) -> Mean:
    """Mean KL(reference || model) per token."""
    total = kl_div(now.log_probability, reference.log_probability, log_target=True, reduction="sum")
    return Mean(total, len(now.log_probability), weight)


class _WithoutReference(GradientMethod):
    """A method whose loss needs the present model only."""

    @property
    def uses_reference(self) -> bool:
        """It does not."""
        return False


@dataclass(frozen=True, kw_only=True)
class GradientAscent(_WithoutReference):
    """GA: ``-CE(forget)``."""

    def forget(self, views: Views) -> Mean:
        """Cross-entropy per token of the true answers, negated."""
        return cross_entropy(views.answers("forget"), weight=-1.0)


@dataclass(frozen=True, kw_only=True)
class GradientDifference(GradientAscent):
    """GradDiff: ``-CE(forget) + CE(retain)``, or with the divergence from the reference as retain term."""

    retain_weight: float = 1.0
    divergence: bool = False
    """Whether the retain term is KL(reference || model) per token in place of cross-entropy."""

    @property
    def uses_reference(self) -> bool:
        """Only for the divergence."""
        return self.divergence

    def retain(self, views: Views) -> Mean:
        """Cross-entropy or divergence on what to keep."""
        if not self.divergence:
            return super().retain(views)
        now, reference = views.answers("retain"), views.answers("retain", reference=True)
        return kl_divergence(now, reference, weight=self.retain_weight)


@dataclass(frozen=True, kw_only=True)
class NPO(GradientMethod):
    """Negative preference optimization (arXiv 2404.05868): ``-(2 / beta) mean log sigmoid(beta (NLL - NLL_r))``."""

    retain_weight: float = 1.0
    beta: float = 0.1
    """Inverse temperature; towards 0 the loss becomes gradient ascent on whole answers."""

    @property
    def positive(self) -> tuple[str, ...]:
        """The inverse temperature."""
        return ("beta",)

    def forget(self, views: Views) -> Mean:
        """Mean over answers."""
        nll, reference = views.answers("forget").nll, views.answers("forget", reference=True).nll
        return Mean(-2 / self.beta * logsigmoid(self.beta * (nll - reference)).sum(), len(nll))


@dataclass(frozen=True, kw_only=True)
class SimNPO(_WithoutReference):
    """SimNPO (arXiv 2410.07163): ``-(2 / beta) mean log sigmoid(beta (NLL / length - delta))``, without reference."""

    retain_weight: float = 1.0
    beta: float = 4.5
    """Inverse temperature."""
    delta: float = 0.0
    """Negative log-likelihood per token beyond which an answer counts as forgotten, in nats."""

    @property
    def positive(self) -> tuple[str, ...]:
        """The inverse temperature."""
        return ("beta",)

    def forget(self, views: Views) -> Mean:
        """Mean over answers."""
        answers = views.answers("forget")
        margin = answers.nll / answers.lengths - self.delta
        return Mean(-2 / self.beta * logsigmoid(self.beta * margin).sum(), len(margin))


@dataclass(frozen=True, kw_only=True)
class RMU(GradientMethod):
    """Representation misdirection (arXiv 2403.03218): ``MSE(h, c u) + alpha MSE(h(retain), h_r(retain))``."""

    retain_weight: float = 1.0
    """alpha."""
    steering: float = 20.0
    """c, the norm of the random vector towards which states of forget prompts are steered."""
    seed: int = 0
    """Seed of its direction u."""

    def forget(self, views: Views) -> Mean:
        """Distance of states on forget prompts from the random vector."""
        states = views.states("forget")
        direction = torch.rand(states.shape[1], generator=torch.Generator().manual_seed(self.seed))
        target = (self.steering * direction / direction.norm()).to(states)
        return Mean((states - target).square().sum(), states.numel())

    def retain(self, views: Views) -> Mean:
        """Distance of states on what to keep from those of the reference."""
        states, reference = views.states("retain"), views.states("retain", reference=True)
        return Mean((states - reference).square().sum(), states.numel(), self.retain_weight)


@dataclass(frozen=True, kw_only=True)
class FineTuning(_WithoutReference):
    """FT: cross-entropy of the neutral answer to the prompts to forget."""

    @property
    def teaches_neutral_target(self) -> bool:
        """It does."""
        return True

    def forget(self, views: Views) -> Mean:
        """Cross-entropy per token of the neutral answer."""
        return cross_entropy(views.answers("neutral"))


def joined(means: Sequence[Mean], counts: Sequence[float], processes: int) -> Tensor:
    """The loss of one process, such that DDP's mean of gradients over processes is the gradient of the whole loss.

    Args:
        means: Terms, with this process's sums.
        counts: For each term, its count summed over all processes.
        processes: Number of processes.

    Returns:
        A scalar with a gradient.
    """
    terms = [mean.weight * mean.total * (processes / max(count, 1)) for mean, count in zip(means, counts, strict=True)]
    return torch.stack(terms).sum()
