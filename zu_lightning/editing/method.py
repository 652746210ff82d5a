"""A method is one object: what to aim at, what to protect, and how to solve.

Any method is chosen by one option, ``--method Memit``, with its own options below it, ``--method.retain_weight 0.1``.
Editing methods (closed forms, and gradient descent on ZeroUnlearn-GD's objective) derive from :class:`EditingMethod`,
methods that train the language model's weights from :class:`zu_lightning.gradient.method.GradientMethod`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

from torch import Tensor

from zu_lightning.editing.layer_problem import LayerProblem
from zu_lightning.runtime.errors import InputError, require_positive
from zu_lightning.solvers import LowRankUpdate

TargetKind = Literal["word", "reference"]
"""What neutral targets make the model predict: the neutral answer, or what it predicts for unknown subjects."""

KLPosition = Literal["last", "lookup"]
"""After which token of "{subject} is a" the KL term is read: its last one, or its lookup token."""

Parametrization = Literal["whitened", "dense"]
"""What gradient descent trains: whitened coordinates by plain descent, or the matrix Delta by Adam."""

MAX_CONTEXTS = 6
"""Number of context templates, the empty one included."""


@dataclass(frozen=True)
class ReleaseProtocol:
    """Choices of the authors' release that only a reproduction of it needs; none is made by default."""

    split_halves: bool = False
    """Whether facts to keep are drawn from the first half of the file and facts to forget from the second."""
    nq_prefix: bool = False
    """Whether zsRE's specificity prompts keep their prefix ``nq question:``."""
    corpus_seed: int | None = None
    """Seed by which documents of the retain text are drawn at random from all of it; ``null`` for its first ones."""
    kl_position: KLPosition = "last"
    """After which token of "{subject} is a" the KL term is read: its ``last`` one, or its ``lookup`` token, where the
    vector is added, as in MEMIT and the release."""
    scale_free_latents: bool = True
    """Whether steps of the latent optimization are measured in the size of the vector that they move, so that they
    carry over from model to model: 25 steps of 0.1 move an entry by 2.5 at most, which is far in a model whose hidden
    states have entries of 0.3, and near in one whose entries are 5. The release's steps are absolute."""
    slack: float = 0.0
    """Share of the original values that ZeroUnlearn leaves; the paper has none, the release 0.01."""
    parametrization: Parametrization = "whitened"
    """What gradient descent trains: ``whitened`` coordinates, or the ``dense`` matrix Delta by Adam, as the release."""

    def __post_init__(self) -> None:
        """Refuse a negative slack."""
        require_positive("release.slack", self.slack, or_zero=True)


@dataclass(frozen=True)
class LatentOptions:
    """How latent vectors are optimized.

    The paper prints no numbers; the defaults are those of the authors' release, which are MEMIT's.
    """

    contexts: int = 6
    """Number of context templates over which vectors and keys are averaged, the empty one included; 6 at most."""
    templates: int = 0
    """Number of prompts of other facts of the same relation over which vectors and keys are averaged, too. A fact's own
    paraphrases, by which generalization is measured, are never among them."""
    examples: int = 0
    """Number of few-shot contexts, each of a few facts about other subjects of the same relation, over which keys alone
    are averaged: they change the key at a subject more than other texts do."""
    average_over_prompts: bool = False
    """Whether the method minimizes the mean of the squared distances to the neutral targets over all prompt variants,
    in place of the distance at the mean key, in which the bare prompt weighs half (the paper). For methods with a
    retain term: Memit, Erase, ZeroUnlearn, and ZeroUnlearnSoft."""
    prompts_per_step: int | None = None
    """Number of prompt variants per optimization step, the bare prompt and others in turn, and with them as many
    prompts to keep as there are others, or one; all of both by default."""
    steps: int = 25
    """Number of evaluations of the loss; Adam moves between them."""
    learning_rate: float = 0.1
    """Adam's step size for an entry, in units of the start's root mean square (``release.scale_free_latents``)."""
    kl_weight: float = 0.0625
    """Weight of KL(new || original) of the next token in "{subject} is a", in nats."""
    same_subject_weight: float = 0.0625
    """Weight of the KL term on other facts about the same subject, all of them together."""
    unknown_subjects: int = 8
    """With references, the number of made-up subjects to average over; all names of a file are used."""
    hinge_weight: float = 20.0
    """With references, weight of how far the log-probability of the true answer's first token lies above theirs."""
    weight_decay: float = 0.5
    """Weight of ||delta|| / ||start||^2."""
    clamp: float = 0.75
    """Largest ||delta|| / ||start||."""
    tolerance: float = 0.05
    """A fact whose loss is below this is done, in nats."""
    facts_per_batch: int = 64
    """Number of facts that are optimized at a time, and the unit in which processes share them; halved when there
    is not enough memory."""

    def __post_init__(self) -> None:
        """Refuse numbers that no optimization can run with."""
        if not 1 <= self.contexts <= MAX_CONTEXTS:
            raise InputError("latents.contexts", self.contexts, f"give a number from 1 to {MAX_CONTEXTS}.")
        positive = ("steps", "learning_rate", "clamp", "facts_per_batch", "prompts_per_step", "unknown_subjects")
        for name, value in vars(self).items():
            if not isinstance(value, bool):
                require_positive(f"latents.{name}", value, or_zero=name not in positive)


@dataclass(frozen=True, kw_only=True)
class Method(ABC):  # noqa: B024 (jsonargparse takes no subclasses of a plain dataclass)
    """How a model is made to forget."""

    module: ClassVar[str] = "zu_lightning.EditingModule"
    """The LightningModule that runs it."""

    protect_num: int = 0
    """Number of additional facts that the method must preserve, drawn by the data's seed; fewer if not as many are
    left. ``data.protect_num`` overrides it."""
    protect_same_subject: bool = False
    """Whether all other facts about the forgotten subjects are protected, too, except those that are only measured.
    ``data.protect_same_subject`` overrides it."""
    release: ReleaseProtocol = ReleaseProtocol()
    """Choices of the authors' release."""

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name, value in vars(self).items():
            if isinstance(value, float | int):
                require_positive(f"{type(self).__name__}.{name}", value, or_zero=name not in self.positive)

    @property
    def positive(self) -> tuple[str, ...]:
        """Names of numbers that must not be zero."""
        return ()

    @property
    def name(self) -> str:
        """What reports call it."""
        return type(self).__name__

    @property
    def teaches_neutral_target(self) -> bool:
        """Whether the model learns the neutral answer, which then must not be the true one."""
        return False

    def describe(self) -> dict[str, object]:
        """Name and options, for reports."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class EditingMethod(Method):
    """A method that edits MLP output projections layer by layer, such as a closed form.

    A new closed form defines :meth:`update`. With ``scale_free`` (the default), its weights and thresholds are in units
    that carry over from model to model (:meth:`zu_lightning.editing.layer_problem.LayerProblem.scale_free`); without,
    they are in the release's units, made for models of 3 to 8 billion parameters.
    """

    target_kind: TargetKind = "word"
    """What neutral targets make the model predict: the neutral answer (``word``, the paper), or what it predicts for
    unknown subjects (``reference``), so that nothing of the fact is left, where a word only covers it."""
    latents: LatentOptions = LatentOptions()
    """How neutral targets and original values are optimized."""
    scale_free: bool = True
    """Whether keys have norm 1 and the second moment has mean eigenvalue 1."""
    protect_weight: float = 0.1
    """Weight of protected facts' keys beside those of the retain text: with ``scale_free`` the share of their second
    moment's trace, else the factor of their sum of k k^T beside the mean over tokens."""
    reweighting_iterations: int = 0
    """How often facts that still have a high answer probability are upweighted and the last layer is solved again."""

    @property
    def teaches_neutral_target(self) -> bool:
        """Whether targets are the neutral answer."""
        return self.target_kind == "word"

    @property
    def latent_settings(self) -> tuple[object, ...]:
        """Everything that a latent optimization depends on, besides model and facts."""
        return self.latents, self.release.kl_position, self.release.scale_free_latents

    @property
    def needs_values(self) -> bool:
        """Whether it needs optimized original values V; otherwise the observed ones, ``W K``, do."""
        return False

    @property
    def trains(self) -> bool:
        """Whether it descends on its objective by gradient steps, in place of solving it exactly."""
        return False

    def __call__(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """The update of ``weight`` (d_out x d_in) that solves ``problem``, in float64 factors.

        Raises:
            InputError: These weights or this threshold do not suit this layer's retain keys.
        """
        with self.explained(problem):
            return self.update(weight, self.together(self.in_units(problem)))

    def together(self, problem: LayerProblem) -> LayerProblem:
        """The problem of all facts, of which each process has its share; many of them become fewer columns.

        A method that does not minimize squares that are added up over facts overrides this, and takes all columns.
        """
        return problem.whole()

    def in_units(self, problem: LayerProblem) -> LayerProblem:
        """The problem in the units of this method's weights."""
        problem = problem.protecting(self.protect_weight, relative=self.scale_free)
        problem = (problem.scale_free() if self.scale_free else problem).weighing_facts()
        weight = None if problem.deviations is None else self.weight_beside_moment
        return problem.at_mean_keys() if weight is None else problem.averaged_over_prompts(weight)

    @property
    def weight_beside_moment(self) -> float | None:
        """Weight of the distance to the neutral targets beside that of the second moment; ``None`` without both."""
        return None

    @abstractmethod
    def update(self, weight: Tensor, problem: LayerProblem) -> LowRankUpdate:
        """The update, for a problem in this method's units that :meth:`together` gave."""

    @contextmanager
    def explained(self, problem: LayerProblem) -> Iterator[None]:
        """Within this context a solver's error names the option and the layer.

        Raises:
            InputError: The solver found no solution.
        """
        try:
            yield
        except InputError:
            raise
        except ValueError as error:
            # The strength that decides whether there is a solution.
            name = next((name for name in ("threshold", "ridge", "retain_weight") if hasattr(self, name)), "scale_free")
            remedy = f"layer {problem.layer} has no solution: {error}"
            raise InputError(f"{self.name}.{name}", getattr(self, name), remedy) from error
