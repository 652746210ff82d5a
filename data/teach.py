"""Facts to teach, text that must stay as it is, and the batches of both."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from data.unlearn import batch_loader
from zu_lightning import (
    EvaluationBatch,
    InputError,
    ReadingOptions,
    TeachBatch,
    TeachModule,
    digest,
    evaluation_batches,
    rank_shard,
    read_facts,
    read_texts,
    retain_documents,
)
from zu_lightning.lm.batching import even_batches
from zu_lightning.lm.tokens import TokenizedText, tokenize_all
from zu_lightning.modules.teach import NEW_PHRASINGS
from zu_lightning.modules.training import own_share
from zu_lightning.runtime.errors import require_positive


class TeachDataModule(LightningDataModule):
    """The prompts of facts and their paraphrases, each once per epoch, with retain text.

    Args:
        path: Facts: our own records or those of CounterFact, zsRE, MQuAKE, or TOFU, in a file or on the hub.
        corpus: Retain text: a file with one document per line, or a data set on the hub. Best is text that the model
            itself has written. Documents that name a subject of the facts are left out.
        heldout: Text for the perplexity, in the same forms.
        held_out_paraphrases: Number of paraphrases of each fact, its last ones, that are not taught: they are a score
            of their own.
        batch_size: Number of statements per step, over all processes.
        retain_size: Number of documents that go with them.
        retain_length: Maximum number of tokens of such a document.
        seed: Seed of their order.
        reading: How much text is read, and in what batches the model is evaluated.
    """

    def __init__(
        self,
        path: str = "data/taught/facts.jsonl",
        corpus: str = "data/demo/corpus.txt",
        heldout: str = "data/demo/heldout.txt",
        held_out_paraphrases: int = 1,
        batch_size: int = 32,
        retain_size: int = 8,
        retain_length: int = 64,
        seed: int = 0,
        reading: ReadingOptions = ReadingOptions(),
    ) -> None:
        super().__init__()
        numbers = {"batch_size": batch_size, "retain_size": retain_size, "retain_length": retain_length}
        for name, value in numbers.items():
            require_positive(name, value)
        require_positive("held_out_paraphrases", held_out_paraphrases, or_zero=True)
        self.path, self.corpus, self.heldout, self.seed = path, corpus, heldout, seed
        self.held_out_paraphrases, self.batch_size, self.reading = held_out_paraphrases, batch_size, reading
        self.retain_size, self.retain_length = retain_size, retain_length

    @property
    def module(self) -> TeachModule:
        """The module that is trained.

        Raises:
            InputError: It is another one.
        """
        module = self.trainer.lightning_module  # type: ignore[union-attr]
        if not isinstance(module, TeachModule):
            raise InputError("model", type(module).__name__, "TeachDataModule reads data for a TeachModule.")
        return module

    def setup(self, stage: str) -> None:
        """Read facts and text: everything that can be wrong with the input shows here."""
        _ = self.module
        facts = [replace(fact, neighbors=(), multi_hop=()) for fact in read_facts(self.path)]
        taught = [max(0, len(fact.paraphrases) - self.held_out_paraphrases) for fact in facts]
        self.taught = [replace(f, paraphrases=f.paraphrases[:n]) for f, n in zip(facts, taught, strict=True)]
        self.unseen = [replace(f, paraphrases=f.paraphrases[n:]) for f, n in zip(facts, taught, strict=True)]
        self.documents = retain_documents(read_texts(self.corpus, self.reading.corpus_documents, "corpus"), facts)
        if not self.documents:
            raise InputError("corpus", self.corpus, "every document names a subject of the facts: give other text.")
        self.prose = read_texts(self.heldout, self.reading.heldout_documents, "heldout")

    def settings(self) -> dict[str, object]:
        """Everything in this data that decides which weights a run ends with, by option."""
        own = ("batch_size", "retain_size", "retain_length", "seed")
        return {f"data.{name}": getattr(self, name) for name in own} | {
            "data.path": digest(*self.taught), "data.corpus": (self.corpus, digest(*self.documents))
        }  # fmt: skip

    def train_dataloader(self) -> DataLoader[TeachBatch]:
        """Every statement once, in batches of similar length, whose order depends on the seed and the epoch."""
        lm = self.module.lm
        rng = random.Random(f"{self.seed} {self.trainer.current_epoch}")  # type: ignore[union-attr]
        queries = [query for fact in self.taught for query in fact.queries]
        statements = tokenize_all(lm.tokenizer, rng.sample(queries, len(queries)))
        drawn = [*even_batches([len(text.ids) for text in statements], self.batch_size)]
        texts = tokenize_all(lm.tokenizer, self._documents(rng, len(drawn)), self.retain_length)
        rng.shuffle(drawn)
        return batch_loader(
            TeachBatch(
                own_share(lm, [statements[i] for i in some]),
                own_share(
                    lm, [TokenizedText(text.ids, 0, 1) for text in texts[step :: len(drawn)] if len(text.ids) > 1]
                ),
            )
            for step, some in enumerate(drawn)
        )

    def val_dataloader(self) -> DataLoader[EvaluationBatch | None]:
        """Prompts, paraphrases, those that are not taught, and text for the perplexity."""
        lm = self.module.lm
        found = evaluation_batches(lm, self.taught, [], self.prose, self.reading)
        unseen = evaluation_batches(lm, self.unseen, [], [], self.reading)
        found += [replace(batch, metric=NEW_PHRASINGS) for batch in unseen if batch.metric == "generalization"]
        return batch_loader([*rank_shard(found)] or [None])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave batches as they are: the language model knows where its input belongs."""
        return batch

    def _documents(self, rng: random.Random, steps: int) -> Sequence[str]:
        """Documents for an epoch; all of them are used before one is used again."""
        count = steps * self.retain_size
        passes = -(-count // len(self.documents))
        return [text for _ in range(passes) for text in rng.sample(self.documents, len(self.documents))][:count]
