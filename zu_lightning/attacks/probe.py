"""Linear probes: whether the answer can be read from a hidden state by a probe trained on other facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from zu_lightning.attacks.answers import approximate_tokens
from zu_lightning.attacks.attack import UNDEFINED, LayerAttack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Fact, FactToken
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import tokenize_fact

ENOUGH = 10
"""Smallest number of facts to train a probe on."""


@dataclass(frozen=True, kw_only=True)
class Probe(LayerAttack):
    """Whether a linear probe, trained on control facts of the same relation, reads the answer from a layer's state.

    For each layer a ridge regression leads from the state at a token, the subject's last, to the answer, one of those
    of the control facts (probing as in arXiv 1610.01644). A fact is recovered if its answer has the highest score. A
    fact has no score if there are too few control facts to train on, or none of them has its answer.

    A hit shows that the answer is still in the state in the same form as others' answers; but some are guessed, and
    from any of several layers more often: compare with a model that was never trained on the facts. A miss shows
    little: a probe with a handful of examples of each answer may not learn what the model itself can read, and an
    answer that is looked up only at later tokens is in no state of the subject. So a low score means something only
    where the unedited model's is high; on the demo's model, which knows everything, it is as low as by chance (with
    ``token`` ``last``, about 0.3).
    """

    name = "probe"

    ridge: float = 1.0
    """Weight of the penalty, in units of the mean eigenvalue of the states' second moment."""
    token: FactToken = "subject_last"
    """Where the states are read; at the prompt's last token the model predicts the answer."""

    def cost(self, context: AttackContext) -> int:
        """Every prompt once, those of control facts included."""
        return sum(approximate_tokens(fact.prompt) for fact in {*context.facts}.union(*context.kept))

    def hits(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> list[list[float]]:
        """Train one probe for each layer and set of control facts."""
        groups: dict[frozenset[Fact], list[int]] = {}
        for i in facts:
            groups.setdefault(frozenset(context.kept[i]), []).append(i)
        different = list(dict.fromkeys([context.facts[i] for i in facts] + [fact for kept in groups for fact in kept]))
        states = dict(zip(different, self._states(lm, different, context.batch_tokens), strict=True))
        hits: dict[int, list[float]] = {}
        for group, members in groups.items():
            kept = sorted(group, key=lambda fact: fact.id)
            hits |= zip(members, self._hits(states, kept, [context.facts[i] for i in members]), strict=True)
        return [hits[i] for i in facts]

    def _states(self, lm: EditableLM, facts: Sequence[Fact], batch_tokens: int) -> list[Tensor]:
        """For each fact the layers' states at the token, layers x width."""
        texts = [tokenize_fact(lm.tokenizer, replace(fact, fact_token=self.token)) for fact in facts]
        states: dict[int, Tensor] = {}
        for indices, batch in batched(lm, texts, batch_tokens):
            rows = torch.arange(len(indices), device=lm.device)
            records = lm.record(batch, list(lm.layers[: self.layers]))
            by_fact = torch.stack([record.output[rows, batch.lookup] for record in records], 1)
            states |= zip(indices, by_fact, strict=True)
        return [states[i] for i in range(len(facts))]

    def _hits(self, states: Mapping[Fact, Tensor], kept: Sequence[Fact], tested: Sequence[Fact]) -> list[list[float]]:
        """For each fact to test and each layer, whether a probe trained on the control facts is right."""
        answers = sorted({fact.target for fact in kept})
        if len(kept) < ENOUGH:
            return [[UNDEFINED] * self.layers for _ in tested]
        train, test = (torch.stack([states[fact] for fact in facts], 1) for facts in (kept, tested))
        labels = torch.tensor([answers.index(fact.target) for fact in kept], device=train.device)
        scores = [probe_scores(x, labels, y, self.ridge) for x, y in zip(train, test, strict=True)]
        predicted = torch.stack(scores, 1).argmax(-1).tolist()
        return [
            [float(answers[j] == fact.target) if fact.target in answers else UNDEFINED for j in row]
            for fact, row in zip(tested, predicted, strict=True)
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
