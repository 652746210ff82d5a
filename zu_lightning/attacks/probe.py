"""Linear probes: can the answer be read from what a layer makes of the subject, by who knows others' answers?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from zu_lightning.attacks.attack import NOTHING, Attack, words
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Fact, FactToken
from zu_lightning.lm import architecture
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import collate, tokenize_fact
from zu_lightning.runtime.errors import require_positive

ENOUGH = 10
"""A probe is trained on no fewer facts."""


@dataclass(frozen=True, kw_only=True)
class Probe(Attack):
    """Whether a linear probe, trained on kept facts of the same relation, reads the answer from a layer's state.

    For each layer a ridge regression leads from the state at a token, the subject's last, to the answer, one of those
    that the kept facts have (probing as in arXiv 1610.01644). A fact is found if its answer has the highest score.

    A hit says that the answer is still in the state in the same form as others' answers; but some are guessed, and in
    any of several layers more often: compare with a model that never knew. A miss says little: a probe with a handful
    of examples of each answer may not learn what the model itself can read, and an answer that is looked up only at
    later tokens is in no state of the subject. So a low score means something only where the unedited model's is high;
    on the demo's model, which knows everything, it is as low as by chance (with ``token`` ``last``, about 0.3).
    """

    name = "probe"

    layers: int
    """Number of layers to look at, lowest first: the model's depth for all."""
    ridge: float = 1.0
    """Weight of the penalty, in units of the mean eigenvalue of the states' second moment."""

    token: FactToken = "subject_last"
    """Where the states are read; the prompt's last token is where the model says the answer."""

    def __post_init__(self) -> None:
        """Refuse numbers that are not positive."""
        require_positive("layers", self.layers)
        require_positive("ridge", self.ridge)

    def names(self, exam: AttackContext) -> list[str]:
        """Found in any layer, and in each, the lowest being 0."""
        return ["probe", *(f"probe_layer_{layer}" for layer in range(self.layers))]

    def tokens(self, exam: AttackContext) -> int:
        """Every prompt once, those of kept facts included."""
        different = {*exam.facts}.union(*exam.kept)
        return sum(words(fact.prompt) for fact in different)

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact and layer 1 if the probe is right.

        Nothing if there are too few kept facts to train on, or none of them has the fact's answer.
        """
        architecture.check_layers(range(self.layers), len(lm.layers))
        groups: dict[frozenset[Fact], list[int]] = {}
        for i in facts:
            groups.setdefault(frozenset(exam.kept[i]), []).append(i)
        different = list(dict.fromkeys([exam.facts[i] for i in facts] + [fact for kept in groups for fact in kept]))
        states = dict(zip(different, self._states(lm, different, exam.batch_tokens), strict=True))
        found: dict[int, list[float]] = {}
        for group, members in groups.items():
            kept, asked = sorted(group, key=lambda fact: fact.id), [exam.facts[i] for i in members]
            for i, hits in zip(members, self._hits(states, kept, asked), strict=True):
                found[i] = hits
        names = self.names(exam)[1:]
        layers = {name: [found[i][layer] for i in facts] for layer, name in enumerate(names)}
        return {"probe": [max(found[i]) for i in facts]} | layers

    def _states(self, lm: EditableLM, facts: Sequence[Fact], batch_tokens: int) -> list[Tensor]:
        """For each fact the layers' states at the token, layers x width."""
        texts = [tokenize_fact(lm.tokenizer, replace(fact, fact_token=self.token)) for fact in facts]
        states: dict[int, Tensor] = {}
        for indices in batches(texts, batch_tokens):
            batch = collate([texts[i] for i in indices], lm.tokenizer).to(lm.device)
            rows = torch.arange(len(indices), device=lm.device)
            records = lm.record(batch, list(lm.layers[: self.layers]))
            found = torch.stack([record.output[rows, batch.lookup] for record in records], 1)
            states |= dict(zip(indices, found, strict=True))
        return [states[i] for i in range(len(facts))]

    def _hits(self, states: Mapping[Fact, Tensor], kept: Sequence[Fact], asked: Sequence[Fact]) -> list[list[float]]:
        """For each fact asked and each layer, whether a probe trained on the kept ones is right."""
        answers = sorted({fact.target for fact in kept})
        if len(kept) < ENOUGH:
            return [[NOTHING] * self.layers for _ in asked]
        known, tested = (torch.stack([states[fact] for fact in facts], 1) for facts in (kept, asked))
        labels = torch.tensor([answers.index(fact.target) for fact in kept], device=known.device)
        scores = [probe_scores(x, labels, test, self.ridge) for x, test in zip(known, tested, strict=True)]
        said = torch.stack(scores, 1).argmax(-1).tolist()
        return [
            [float(answers[j] == fact.target) if fact.target in answers else NOTHING for j in row]
            for fact, row in zip(asked, said, strict=True)
        ]


def probe_scores(states: Tensor, labels: Tensor, tested: Tensor, ridge: float) -> Tensor:
    """Scores of classes by ridge regression onto their indicators, with an intercept, in float64.

    States are standardized first, so that a few large coordinates do not decide.

    Args:
        states: To train on, n x d.
        labels: Their classes 0, 1, ..., each of which occurs, n.
        tested: States to judge, m x d.
        ridge: Weight of the penalty, in units of the mean eigenvalue of the standardized states' second moment.

    Returns:
        m x classes.
    """
    states, tested = states.double(), tested.double()
    mean, deviation = states.mean(0), states.std(0, correction=0)
    # A coordinate that is constant up to rounding stays so.
    deviation = torch.where(deviation > 1e-6 * states.abs().amax(0), deviation, 1)
    X, tested = (states - mean) / deviation, (tested - mean) / deviation
    Y = one_hot(labels).double()
    # (X^T X + c I)^-1 X^T = X^T (X X^T + c I)^-1, and there are mostly fewer facts than coordinates.
    gram = X @ X.T
    penalty = ridge * gram.trace().clamp(min=1) / X.shape[1]  # the trace is n at least, unless all states are equal
    weights: Tensor = X.T @ torch.linalg.solve(
        gram + penalty * torch.eye(len(X), dtype=X.dtype, device=X.device), Y - Y.mean(0)
    )
    return Y.mean(0) + tested @ weights
