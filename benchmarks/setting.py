"""The model, facts, and texts that the options of a benchmark name."""

import argparse

import torch

from zu_lightning import EditableLM, Fact, ReadingOptions, facts_by_id, read_facts, read_texts, split_facts

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
