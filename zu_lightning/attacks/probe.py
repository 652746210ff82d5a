"""Linear probes: whether the answer can be read from a hidden state by a probe trained on other facts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from zu_lightning.attacks.answers import approximate_tokens
from zu_lightning.attacks.attack import UNDEFINED, LayerAttack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.facts.fact import Fact, FactToken
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import tokenize_all

ENOUGH = 10
"""Smallest number of facts to train a probe on."""


@dataclass(frozen=True, kw_only=True)
class Probe(LayerAttack):
    """Whether a linear probe, trained on control facts of the same relation, reads the answer from a layer's state.

    For each layer a ridge classifier leads from the standardized state at a token, the subject's last, to the answer,
    one of those of the control facts (probing as in arXiv 1610.01644). A fact is recovered if its answer has the
    highest score. A fact has no score if there are too few control facts to train on, or none of them has its answer.

    A hit shows that the answer is still in the state in the same form as others' answers; but some are guessed, and
    from any of several layers more often: compare with a model that was never trained on the facts. A miss shows
    little: a probe with a handful of examples of each answer may not learn what the model itself can read, and an
    answer that is looked up only at later tokens is in no state of the subject. So a low score means something only
    where the unedited model's is high; on the demo's model, which knows everything, it is as low as by chance (with
    ``token`` ``last``, about 0.3).
    """

    name = "probe"

    ridge: float = 1.0
    """Weight of the penalty, in units of the mean eigenvalue of the standardized states' second moment."""
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
        texts = tokenize_all(lm.tokenizer, [replace(fact, fact_token=self.token) for fact in facts])
        states: dict[int, Tensor] = {}
        for indices, batch in batched(lm, texts, batch_tokens):
            rows = torch.arange(len(indices), device=lm.device)
            records = lm.record(batch, list(lm.layers[: self.layers]))
            by_fact = torch.stack([record.output[rows, batch.lookup] for record in records], 1)
            states |= zip(indices, by_fact, strict=True)
        return [states[i] for i in range(len(facts))]

    def _hits(self, states: Mapping[Fact, Tensor], kept: Sequence[Fact], tested: Sequence[Fact]) -> list[list[float]]:
        """For each fact to test and each layer, whether a probe trained on the control facts is right."""
        if len(kept) < ENOUGH:
            return [[UNDEFINED] * self.layers for _ in tested]
        train, test = (
            torch.stack([states[fact] for fact in facts], 1).double().cpu().numpy() for facts in (kept, tested)
        )
        probe = make_pipeline(StandardScaler(), RidgeClassifier(alpha=self.ridge * len(kept)))
        labels = [fact.target for fact in kept]
        predicted = zip(*(probe.fit(x, labels).predict(y) for x, y in zip(train, test, strict=True)), strict=True)
        return [
            [float(answer == fact.target) if fact.target in labels else UNDEFINED for answer in row]
            for fact, row in zip(tested, predicted, strict=True)
        ]
