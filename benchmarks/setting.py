"""What the options of a benchmark stand for: a model, facts, and text; and how rules do with them."""

import argparse
from dataclasses import dataclass, replace

import torch

from zu_lightning import (
    EditableLM,
    EvaluationBatch,
    Fact,
    Monitor,
    NeutralTargets,
    Preparation,
    ReadingOptions,
    Request,
    RetainText,
    Rule,
    TargetOptions,
    edit_layers,
    evaluate,
    evaluation_batches,
    facts_by_id,
    prepare,
    read_facts,
    read_texts,
    retain_documents,
    split_facts,
)

WHOLE = ReadingOptions(corpus_tokens=None)
"""All of the retain text is read."""


def load_model(arguments: argparse.Namespace) -> EditableLM:
    """The model of ``--model``, on the device of ``--device``."""
    return EditableLM.from_pretrained(arguments.model).to(torch.device(arguments.device))


def named_facts(arguments: argparse.Namespace) -> list[Fact]:
    """The facts of ``--facts``, or those of them that are listed in the file of ``--ids``."""
    facts = read_facts(arguments.facts)
    return facts_by_id(facts, read_texts(arguments.ids, parameter="--ids")) if arguments.ids else facts


def draw_facts(arguments: argparse.Namespace, seed: int) -> tuple[list[Fact], list[Fact]]:
    """As many facts to forget and to keep as ``--forget`` and ``--retain`` say."""
    forget, retain, _ = split_facts(named_facts(arguments), arguments.forget, arguments.retain, seed=seed)
    return forget, retain


def corpus_documents(arguments: argparse.Namespace) -> list[str]:
    """The documents of ``--corpus``."""
    return read_texts(arguments.corpus, WHOLE.corpus_documents, "--corpus")


def heldout_documents(arguments: argparse.Namespace) -> list[str]:
    """The documents of ``--heldout``."""
    return read_texts(arguments.heldout, WHOLE.heldout_documents, "--heldout")


@dataclass(frozen=True)
class Trial:
    """A model that is made to forget a draw of facts by one rule after another.

    Attributes:
        lm: The model; after each rule it has its own weights again.
        layers: Layers to edit, lowest first.
        request: What to forget and what to keep.
        evaluation: What the model is asked.
        options: What edits aim at.
    """

    lm: EditableLM
    layers: list[int]
    request: Request
    evaluation: list[EvaluationBatch]
    options: TargetOptions

    @classmethod
    def drawn(cls, lm: EditableLM, arguments: argparse.Namespace, seed: int, options: TargetOptions) -> "Trial":
        """A trial with the facts that a seed draws."""
        forget, retain = draw_facts(arguments, seed)
        documents = retain_documents(corpus_documents(arguments), forget)
        evaluation = evaluation_batches(lm, forget, retain, heldout_documents(arguments))
        request = Request(forget, RetainText(documents, WHOLE), seed=seed)
        return cls(lm, arguments.layers, request, evaluation, options)

    def prepare(
        self, reading: ReadingOptions = WHOLE, targets: NeutralTargets | None = None, *, progress: bool = False
    ) -> Preparation:
        """Read what rules need from the unedited model; ``targets``, if given, are not optimized again."""
        request = replace(self.request, text=replace(self.request.text, reading=reading))
        return prepare(self.lm, request, self.layers, self.options, targets, Monitor(progress=progress))

    def scores(self, rule: Rule, preparation: Preparation) -> dict[str, float]:
        """The scores after a rule's edit, which is then undone.

        Raises:
            ValueError: The rule cannot be solved.
        """
        weights = {layer: self.lm.weight(layer).clone() for layer in self.layers}
        try:
            edit_layers(self.lm, self.request, self.layers, rule, preparation, self.options)
            return evaluate(self.lm, self.evaluation)
        finally:
            for layer, weight in weights.items():
                self.lm.set_weight(layer, weight)
