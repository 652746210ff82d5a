"""Facts to forget and to keep, retain text, and the key batches of the layer that is being edited."""

import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, IterableDataset

from zu_lightning import (
    EvaluationBatch,
    Fact,
    InputError,
    LayerProblem,
    Preparation,
    UnlearnModule,
    evaluation_batches,
    facts_by_id,
    layer_problem,
    own_share,
    prepare,
    read_facts,
    read_texts,
    retain_documents,
    split_facts,
    timed,
)
from zu_lightning.facts.fact import FactToken

log = logging.getLogger(__name__)

T = TypeVar("T")


class UnlearnDataModule(LightningDataModule):
    """Forget set, retain set and retain text.

    ``train_dataloader`` is called before each epoch (``reload_dataloaders_every_n_epochs=1``) and then reads the keys
    of that epoch's layer from the module's model, with the layers below already edited.

    Args:
        path: Facts, see docs/data.md: our records or those of CounterFact, zsRE, MQuAKE or TOFU, in a file or on the
            hub.
        corpus: Retain text: a file with one document a line, or a data set of the hub. Documents that name a
            forgotten subject are left out.
        heldout: Text for the perplexity, in the same forms. By default the last tenth of the corpus, which is then
            not used for anything else.
        ids: File with one id a line: no other facts are drawn from, such as those that the model is known to know.
        forget_num: How many facts to forget, drawn by seed; ignored where ``forget_ids`` is given.
        retain_num: How many other facts to watch, drawn by seed; ignored where ``retain_ids`` is given.
        seed: Seed of the draw and of the context templates.
        forget_ids: Ids of the facts to forget.
        retain_ids: Ids of the facts to watch.
        fact_token: Where the model is edited: at the subject's last or first token, or at the prompt's last.
        detect_subjects: Whether to look for the subject in the prompt where a record names none.
        chat: Whether prompts are put to the model as a user's message, by its chat template.
        halves: Whether facts to keep are drawn from the first half of the file and facts to forget from the second,
            as in the paper.
        corpus_tokens: Tokens of the corpus after which it is read no further; ``null`` for all of it.
        corpus_documents: Most documents of the corpus that are read.
        heldout_documents: Most documents of the held-out text that are read.
        max_length: Most tokens of a document that are read.
        batch_tokens: Most tokens in a batch of an evaluation or of retain text.
    """

    def __init__(
        self,
        path: str = "data/demo/facts.jsonl",
        corpus: str = "data/demo/corpus.txt",
        heldout: str | None = None,
        ids: str | None = None,
        forget_num: int = 10,
        retain_num: int = 200,
        seed: int = 0,
        forget_ids: list[str] | None = None,
        retain_ids: list[str] | None = None,
        halves: bool = False,
        fact_token: FactToken = "subject_last",
        detect_subjects: bool = True,
        chat: bool = False,
        corpus_tokens: int | None = 1_000_000,
        corpus_documents: int = 100_000,
        heldout_documents: int = 500,
        max_length: int = 512,
        batch_tokens: int = 2048,
    ) -> None:
        super().__init__()
        self.path, self.corpus_source, self.heldout_source = path, corpus, heldout
        self.ids = ids
        self.forget_num, self.retain_num, self.seed = forget_num, retain_num, seed
        self.forget_ids, self.retain_ids, self.halves = forget_ids, retain_ids, halves
        self.fact_token, self.detect_subjects, self.chat = fact_token, detect_subjects, chat
        self.corpus_documents, self.heldout_documents = corpus_documents, heldout_documents
        self.max_length, self.batch_tokens, self.corpus_tokens = max_length, batch_tokens, corpus_tokens
        self.known: Preparation | None = None
        """What the first epoch read from the unedited model."""

    def setup(self, stage: str) -> None:
        """Read and split the facts, read the text: everything that can be wrong with the input shows here."""
        if self.corpus_tokens is not None and self.corpus_tokens < 1:
            raise InputError(f"data.corpus_tokens is {self.corpus_tokens}: give a positive number, or null for all.")
        facts = read_facts(self.path, detect_subjects=self.detect_subjects)
        if self.ids is not None:
            facts = facts_by_id(facts, read_texts(self.ids, sys.maxsize, "data.ids"))
        self.forget, self.retain = split_facts(
            [replace(fact.as_chat() if self.chat else fact, fact_token=self.fact_token) for fact in facts],
            self.forget_num,
            self.retain_num,
            self.seed,
            self.forget_ids,
            self.retain_ids,
            self.halves,
        )
        heldout = None if self.heldout_source is None else self._read(self.heldout_source, "heldout")
        corpus = self._read(self.corpus_source, "corpus") if stage == "fit" or heldout is None else []
        self.corpus = retain_documents(corpus, self.forget)
        left_out = len(corpus) - len(self.corpus)
        if heldout is None:
            kept = len(self.corpus) - len(self.corpus) // 10
            self.corpus, heldout = self.corpus[:kept], self.corpus[kept:]
        self.heldout = heldout[: self.heldout_documents]
        if stage == "fit" and not self.corpus:
            raise InputError(
                f"data.corpus {self.corpus_source!r} has no document that names no forgotten subject: add retain text."
            )
        log.info("%d facts to forget, %d to keep", len(self.forget), len(self.retain))
        if self.corpus:
            log.info(
                "%d documents of retain text (%d more name a forgotten subject and are left out), %d held out",
                len(self.corpus), left_out, len(self.heldout),
            )  # fmt: skip

    def train_dataloader(self) -> DataLoader[LayerProblem]:
        """The problem of the layer whose turn it is, step after step until the module has solved it."""
        module = self.module
        if not module.layers_left:  # a run that goes on after its last layer
            module.restore_updates()
            return _loader([])
        layer = module.layers_left[0]
        if self.known is None or not self.known.second_moments:
            self.known = prepare(
                module.lm, self.forget, self.corpus, module.layers_left, module.neutral_target, options=module.latents,
                seed=self.seed, max_length=self.max_length, max_tokens=self.batch_tokens,
                token_budget=self.corpus_tokens, cache=self._cache,
                known=self.known, seconds=module.seconds, progress=self._progress,
            )  # fmt: skip
            module.restore_updates()
        with timed(module.seconds, "keys_and_values"):
            problem = layer_problem(
                module.lm, self.forget, layer, module.layers, self.known, options=module.latents,
                optimise_values=module.optimise_values, progress=self._progress,
            )  # fmt: skip
        return DataLoader(_Steps(problem, module), batch_size=None)

    def val_dataloader(self) -> DataLoader[EvaluationBatch | None]:
        """Queries for each metric, and held-out text for the perplexity."""
        batches = evaluation_batches(
            self.module.lm,
            self.forget,
            self.retain,
            self.heldout,
            max_length=self.max_length,
            max_tokens=self.batch_tokens,
        )
        # A process without a share still has to take part in the sums that follow.
        return _loader([*own_share(batches)] or [None])

    def test_dataloader(self) -> DataLoader[EvaluationBatch | None]:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[list[Fact]]:
        """The facts to forget and to keep."""
        facts = [*self.forget, *self.retain]
        return _loader([facts[i : i + 16] for i in range(0, len(facts), 16)])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave batches as they are: the language model knows where its input belongs."""
        return batch

    def _read(self, source: str, field: str) -> list[str]:
        return read_texts(source, getattr(self, f"{field}_documents"), f"data.{field}")

    @property
    def module(self) -> UnlearnModule:
        """The module that this data is read for."""
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, UnlearnModule):
            raise InputError(f"UnlearnDataModule reads keys for an UnlearnModule, but the model is {module!r:.80}.")
        return module

    @property
    def _cache(self) -> Path | None:
        trainer = self.trainer
        if trainer is None or trainer.fast_dev_run or self.module.lm.is_dispatched:  # type: ignore[attr-defined]
            return None
        return Path(trainer.default_root_dir, "cache")

    @property
    def _progress(self) -> bool:
        return (
            self.trainer is not None and self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
        )


class _Steps(IterableDataset[LayerProblem]):
    """A layer's problem, once for each step that the module wants to take.

    Lightning fetches a batch ahead, so that one more step follows the one that has converged.
    """

    def __init__(self, problem: LayerProblem, module: UnlearnModule) -> None:
        self.problem, self.module = problem, module

    def __iter__(self) -> Iterator[LayerProblem]:
        for _ in range(self.module.steps):
            if self.module.converged:
                return
            yield self.problem


def _loader(items: Sequence[T]) -> DataLoader[T]:
    """The items as they are, one a batch."""
    return DataLoader(cast("Dataset[T]", items), batch_size=None)
