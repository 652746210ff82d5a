"""Training after the edit: whether a little of it restores facts that it did not teach."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy

from zu_lightning.attacks.answers import approximate_tokens, score_answers
from zu_lightning.attacks.attack import UNDEFINED, Attack
from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.passes import batched
from zu_lightning.lm.tokens import TokenizedText, tokenize_all
from zu_lightning.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class _TrainingAttack(Attack):
    """Whether greedy decoding gives the answer after training; the score is named after the setting."""

    learning_rate: float = 1e-4
    """Step size of AdamW; it stays the same."""
    steps: int = 30
    """Number of steps."""

    @property
    def score_name(self) -> str:
        """Name of the only score."""
        return f"{self.name}_{self.steps}x{self.learning_rate:g}"


@dataclass(frozen=True, kw_only=True)
class Relearning(_TrainingAttack):
    """Whether training on other forgotten facts restores a fact (arXiv 2410.08827).

    The facts are dealt to folds, those about one subject to the same one. For each fold a copy of the model is trained
    on the facts of all other folds, at every step on all of them, and tested on the facts of this fold. With a single
    subject nothing is trained.
    """

    folds: int = 5
    """Number of folds; as many as there are subjects if there are fewer."""

    name = "relearning"

    def cost(self, context: AttackContext) -> int:
        """Every fact, at every step of every fold but its own, and once to test it."""
        passes = 3 * self.steps * (len(self.groups(context)) - 1)
        return (passes + 1) * _cost_of_facts(context) if passes else 0

    def scores(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """Train and test on each fold that has some of the facts."""
        exact = dict.fromkeys(facts, UNDEFINED)
        folds = self.groups(context)
        texts = tokenize_all(lm.tokenizer, [fact.query for fact in context.facts])
        for fold in folds if len(folds) > 1 else []:
            tested = [i for i in fold if i in exact]
            if tested:
                steps = [[text for i, text in enumerate(texts) if i not in fold]] * self.steps
                with trained(lm, steps, self.learning_rate, context.batch_tokens):
                    exact |= zip(tested, _exact(lm, context, tested), strict=True)
        return {self.score_name: [exact[i] for i in facts]}

    def groups(self, context: AttackContext) -> list[list[int]]:
        """Indices of the facts of each fold; a fact without a subject is a subject of its own."""
        subjects: dict[str | int, list[int]] = {}
        for i, fact in enumerate(context.facts):
            subjects.setdefault(fact.subject or i, []).append(i)
        by_subject = list(subjects.values())
        random.Random(context.seed).shuffle(by_subject)
        count = min(self.folds, len(by_subject))
        return [[i for subject in by_subject[fold::count] for i in subject] for fold in range(count)]


@dataclass(frozen=True, kw_only=True)
class BenignRelearning(_TrainingAttack):
    """Whether training on unrelated text restores the facts.

    It is the weakest form of benign relearning (arXiv 2406.13356), whose text is loosely related to the facts.
    """

    steps: int = 100
    """Number of steps."""
    documents: int = 16
    """Number of texts of each step, drawn from the context's prose; all of them if there are fewer."""

    name = "benign_relearning"

    def cost(self, context: AttackContext) -> int:
        """The texts of every step, then every fact."""
        if not context.prose:
            return 0
        lengths = [min(approximate_tokens(text), context.batch_tokens) for text in context.prose]
        read = sum(lengths) / len(lengths)
        return round(3 * self.steps * min(self.documents, len(lengths)) * read) + _cost_of_facts(context)

    def scores(self, lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """Train once, then test all facts; undefined without prose."""
        length = min(lm.context_length, context.batch_tokens)
        texts = tokenize_all(lm.tokenizer, context.prose, length)
        # Every token but the first is learned, as an answer to those before.
        texts = [replace(text, answer=1) for text in texts if len(text.ids) > 1]
        if not texts:
            return {self.score_name: [UNDEFINED] * len(facts)}
        rng, count = random.Random(context.seed), min(self.documents, len(texts))
        steps = [rng.sample(texts, count) for _ in range(self.steps)]
        with trained(lm, steps, self.learning_rate, context.batch_tokens):
            return {self.score_name: _exact(lm, context, facts)}


@contextmanager
def trained(
    lm: EditableLM, steps: Sequence[Sequence[TokenizedText]], learning_rate: float, batch_tokens: int
) -> Iterator[None]:
    """Train all weights further, in float32, and restore them afterwards.

    AdamW without weight decay minimizes the mean cross-entropy of a step's answer tokens, without dropout.

    Args:
        lm: The model.
        steps: The texts of each step.
        learning_rate: Step size; it stays the same.
        batch_tokens: Maximum number of tokens per batch, padding included; gradients of a step's batches are added.

    Raises:
        InputError: Not all weights are on a device.
    """
    parameters = list(lm.model.parameters())
    if any(parameter.is_meta for parameter in parameters):
        remedy = "weights that are not on a device cannot be trained: leave it out, or use larger devices."
        raise InputError("load_options", "device_map", remedy)
    modes = [(module, module.training) for module in lm.model.modules()]
    kept = [(parameter, parameter.data, parameter.grad, parameter.requires_grad) for parameter in parameters]
    try:
        lm.model.train(False)
        # Lightning evaluates in inference mode, in which nothing can be trained.
        with torch.inference_mode(False), torch.enable_grad():
            for parameter, data, _, _ in kept:
                parameter.grad = None
                parameter.data = data.to(torch.float32, copy=True)
                parameter.requires_grad_(True)
            _train(lm, parameters, steps, learning_rate, batch_tokens)
        yield
    finally:
        for parameter, data, gradient, flag in kept:
            parameter.grad = None
            parameter.data = data
            parameter.grad = gradient
            parameter.requires_grad_(flag)
        for module, mode in modes:
            module.training = mode


def _train(
    lm: EditableLM,
    parameters: Sequence[torch.nn.Parameter],
    steps: Sequence[Sequence[TokenizedText]],
    learning_rate: float,
    batch_tokens: int,
) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    for texts in steps:
        optimizer.zero_grad()
        count = sum(len(text.ids) - text.answer for text in texts)
        for _, batch in batched(lm, texts, batch_tokens):
            rows, positions, tokens = batch.answer_positions()
            loss = cross_entropy(lm.logits(batch, rows, positions), tokens, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()


def _exact(lm: EditableLM, context: AttackContext, facts: Sequence[int]) -> list[float]:
    """For each of some facts whether greedy decoding gives the answer to its prompt."""
    queries = [context.facts[i].query for i in facts]
    return [float(answer.exact) for answer in score_answers(lm, queries, context.batch_tokens)]


def _cost_of_facts(context: AttackContext) -> int:
    return sum(approximate_tokens(fact.prompt + fact.target) for fact in context.facts)
