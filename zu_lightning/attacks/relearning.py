"""Training after the edit: whether a little of it brings back facts that it did not teach."""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from zu_lightning.attacks.answers import score_answers
from zu_lightning.attacks.attack import NOTHING, Attack, words
from zu_lightning.attacks.context import AttackContext
from zu_lightning.lm.batching import batches
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.tokens import TokenizedText, collate, tokenize, tokenize_queries
from zu_lightning.runtime.distributed import all_reduce, rank_shard
from zu_lightning.runtime.errors import InputError, require_positive


@dataclass(frozen=True, kw_only=True)
class Relearning(Attack):
    """Whether training on other forgotten facts brings a fact back (arXiv 2410.08827).

    The facts are dealt to folds, those about one subject to the same one. For each fold a copy of the model is trained
    on the facts of all others and asked for those of this fold, which it has not seen since the edit. With two folds
    it is trained on one half and asked for the other.
    """

    learning_rate: float = 1e-4
    """Step size of AdamW; it stays the same."""
    steps: int = 30
    """Number of steps, each on all facts that are trained on."""
    folds: int = 5
    """Number of folds; as many as there are subjects if there are fewer."""

    name = "relearning"

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing is trained."""
        for option in ("learning_rate", "steps", "folds"):
            require_positive(option, getattr(self, option))

    def names(self, exam: AttackContext) -> list[str]:
        """One score, named after the setting."""
        return [f"{self.name}_{self.steps}x{self.learning_rate:g}"]

    def tokens(self, exam: AttackContext) -> int:
        """Every fact, at every step of every fold but its own, and once to ask for it."""
        passes = 3 * self.steps * (len(self.dealt(exam)) - 1)
        return (passes + 1) * sum(words(fact.prompt + fact.target) for fact in exam.facts) if passes else 0

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact whether the model answers exactly after training on the other folds."""
        exact = dict.fromkeys(facts, NOTHING)
        folds = self.dealt(exam)
        texts = tokenize_queries(lm.tokenizer, [fact.query for fact in exam.facts])
        for fold in folds if len(folds) > 1 else []:
            own, others = [i for i in fold if i in exact], [text for i, text in enumerate(texts) if i not in fold]
            if own:
                steps = [others] * self.steps
                with trained(lm, steps, self.learning_rate, exam.batch_tokens):
                    exact |= zip(own, _exact(lm, exam, own), strict=True)
        return {self.names(exam)[0]: [exact[i] for i in facts]}

    def __call__(self, lm: EditableLM, exam: AttackContext) -> dict[str, Tensor]:
        """For its only score, that of all n facts, float64; processes share the folds."""
        mine = [i for fold in rank_shard(self.dealt(exam)) for i in fold]
        scores = torch.zeros(len(exam.facts), dtype=torch.float64, device=lm.device)
        [(name, values)] = self.scores(lm, exam, mine).items()
        scores[mine] = torch.tensor(values, dtype=torch.float64, device=lm.device)
        return {name: all_reduce(scores)[0].cpu()}

    def dealt(self, exam: AttackContext) -> list[list[int]]:
        """The facts of each fold, by their indices; a fact without a subject is a subject of its own."""
        subjects: dict[str | int, list[int]] = {}
        for i, fact in enumerate(exam.facts):
            subjects.setdefault(fact.subject or i, []).append(i)
        groups = list(subjects.values())
        random.Random(exam.seed).shuffle(groups)
        count = min(self.folds, len(groups))
        return [[i for group in groups[fold::count] for i in group] for fold in range(count)]


@dataclass(frozen=True, kw_only=True)
class BenignRelearning(Attack):
    """Whether training on text that says nothing about the facts brings them back.

    It is the weakest form of benign relearning (arXiv 2406.13356), whose text is loosely related to the facts.
    """

    learning_rate: float = 1e-4
    """Step size of AdamW; it stays the same."""
    steps: int = 100
    """Number of steps."""
    documents: int = 16
    """Number of texts of each step, drawn from the exam's prose; all of them if there are fewer."""

    name = "benign_relearning"

    def __post_init__(self) -> None:
        """Refuse numbers with which nothing is trained."""
        for option in ("learning_rate", "steps", "documents"):
            require_positive(option, getattr(self, option))

    def names(self, exam: AttackContext) -> list[str]:
        """One score, named after the setting."""
        return [f"{self.name}_{self.steps}x{self.learning_rate:g}"]

    def tokens(self, exam: AttackContext) -> int:
        """The texts of every step, then every fact."""
        if not exam.prose:
            return 0
        read = sum(min(words(text), exam.batch_tokens) for text in exam.prose) / len(exam.prose)
        asked = sum(words(fact.prompt + fact.target) for fact in exam.facts)
        return round(3 * self.steps * min(self.documents, len(exam.prose)) * read) + asked

    def scores(self, lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> Mapping[str, Sequence[float]]:
        """For each fact whether the model answers exactly after the training."""
        length = min(lm.context_length, exam.batch_tokens)
        texts = [tokenize(lm.tokenizer, text, max_length=length) for text in exam.prose]
        # Every token but the first is learned, as an answer to those before.
        texts = [replace(text, answer=1) for text in texts if len(text.ids) > 1]
        exact = [NOTHING] * len(facts)
        if texts:
            rng, count = random.Random(exam.seed), min(self.documents, len(texts))
            steps = [rng.sample(texts, count) for _ in range(self.steps)]
            with trained(lm, steps, self.learning_rate, exam.batch_tokens):
                exact = _exact(lm, exam, facts)
        return {self.names(exam)[0]: exact}


@contextmanager
def trained(
    lm: EditableLM, steps: Sequence[Sequence[TokenizedText]], learning_rate: float, batch_tokens: int
) -> Iterator[None]:
    """Within this context all weights are trained further, in float32; afterwards they are as before.

    AdamW without weight decay minimizes the mean cross-entropy of a step's answer tokens, without dropout.

    Args:
        lm: The model.
        steps: The texts of each step.
        learning_rate: Step size; it stays the same.
        batch_tokens: Maximum number of tokens that are read at a time, padding included; their gradients are added.

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
        for indices in batches(texts, batch_tokens):
            batch = collate([texts[i] for i in indices], lm.tokenizer).to(lm.device)
            rows, positions, tokens = batch.answer_positions()
            loss = cross_entropy(lm.logits(batch, rows, positions), tokens, reduction="sum") / count
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()


def _exact(lm: EditableLM, exam: AttackContext, facts: Sequence[int]) -> list[float]:
    """For each of some facts whether greedy decoding gives the answer to its prompt."""
    return [
        float(answer.exact) for answer in score_answers(lm, [exam.facts[i].query for i in facts], exam.batch_tokens)
    ]
