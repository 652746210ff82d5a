"""Facts to forget and to keep, retain text, and the batches that modules train on and are evaluated with."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from zu_lightning import (
    EvaluationBatch,
    Fact,
    FactToken,
    InputError,
    ReadingOptions,
    Request,
    RetainText,
    UnlearnModule,
    digest,
    evaluation_batches,
    facts_by_id,
    rank_shard,
    read_facts,
    read_texts,
    retain_documents,
    split_facts,
)
from zu_lightning.editing.request import about_subjects_of
from zu_lightning.facts.splits import without
from zu_lightning.ledger import Ledger
from zu_lightning.ledger.entries import number_of
from zu_lightning.ledger.ledger import known_already
from zu_lightning.modules.state import saved_settings

log = logging.getLogger(__name__)

T = TypeVar("T")

PREDICT_BATCH = 16
"""Number of prompts in a batch of ``predict``."""


class UnlearnDataModule(LightningDataModule):
    """Forget set, retain set, and retain text.

    ``train_dataloader`` is called before each epoch (``reload_dataloaders_every_n_epochs=1``) and asks the module what
    it trains on: an editing module then reads the keys of that epoch's layer, with the layers below already edited.

    Args:
        path: Facts: our own records or those of CounterFact, zsRE, MQuAKE, or TOFU, in a file or on the hub.
        corpus: Retain text: a file with one document per line, or a data set on the hub. Documents that name a
            forgotten subject are left out.
        heldout: Text for the perplexity, in the same forms. By default the last tenth of the corpus, which is then
            not used for anything else.
        ids: File with one id per line: only these facts are drawn from, such as those that the model is known to know.
        forget_num: How many facts (or records) to forget, drawn by seed; ignored if ``forget_ids`` is given.
        retain_num: How many other facts to watch, drawn by seed; ignored if ``retain_ids`` is given. The method never
            sees them.
        protect_num: How many more facts to keep, of which the method is told; drawn by seed, after the others; fewer
            if not as many are left; ignored if ``protect_ids`` is given.
        protect_same_subject: Whether to protect all other facts about the forgotten subjects, too, except those that
            are only watched.
        unknown_subjects: File with one name per line: subjects that the model knows nothing about, for
            ``target: reference``. By default names are made up from halves of those of the data set.
        seed: Seed of the draw and of the context templates.
        forget_path: File with the facts to forget, in the forms of ``path``, which then only says what stays. It may
            hold facts of ``path``. ``forget_num`` and ``forget_ids`` are ignored.
        forget_ids: Ids of the facts to forget.
        retain_ids: Ids of the facts to watch.
        protect_ids: Ids of the facts to keep of which the method is told.
        halves: Whether facts to keep are drawn from the first half of the file and facts to forget from the second,
            as in the authors' release.
        draw: Whether the numbers count ``facts``, or ``records`` whose facts go together. Only MQuAKE has records of
            several facts, its rewritten hops.
        nq_prefix: Whether zsRE's specificity prompts keep their prefix ``nq question:``.
        fact_token: Where the model is edited: at the subject's last or first token, or at the prompt's last.
        detect_subjects: Whether to look for the subject in the prompt if a record names none.
        chat: Whether prompts are given to the model as a user's message, through its chat template.
        reading: How much text is read, and in what batches.
        cache: Folder in which runs share what they have computed: neutral targets, values, second moments, and the
            scores before. By default ``cache`` in the run's folder; give all runs of a grid the same one.
        project: Folder of a model that is given one request after the other: its ledger knows the earlier ones, starts
            from their updates, and keeps them in effect.
        keep_texts: Whether the project folder keeps the texts of this request. Without them it can be neither
            evaluated again nor solved again, but stays in effect.
        replaces: Number of a request of the project that was taken back together with another, to solve it again.
    """

    request: Request
    continues_from: str | None = None
    """Checkpoint from which a run is continued."""
    forgotten: Sequence[str] | None = None
    """Ids of the facts of a run that is over, to read its data as it did."""

    def __init__(
        self,
        path: str = "data/demo/facts.jsonl",
        corpus: str = "data/demo/corpus.txt",
        heldout: str | None = None,
        ids: str | None = None,
        forget_num: int = 10,
        retain_num: int = 200,
        protect_num: int = 0,
        protect_same_subject: bool = False,
        unknown_subjects: str | None = None,
        seed: int = 0,
        forget_path: str | None = None,
        forget_ids: list[str] | None = None,
        retain_ids: list[str] | None = None,
        protect_ids: list[str] | None = None,
        halves: bool = False,
        draw: Literal["facts", "records"] = "facts",
        nq_prefix: bool = False,
        fact_token: FactToken = "subject_last",
        detect_subjects: bool = True,
        chat: bool = False,
        reading: ReadingOptions = ReadingOptions(),  # noqa: B008 (frozen)
        cache: str | None = None,
        project: str | None = None,
        keep_texts: bool = True,
        replaces: int | None = None,
    ) -> None:
        super().__init__()
        self.path, self.corpus, self.heldout, self.ids = path, corpus, heldout, ids
        self.forget_num, self.retain_num, self.protect_num = forget_num, retain_num, protect_num
        self.forget_ids, self.retain_ids, self.protect_ids = forget_ids, retain_ids, protect_ids
        self.seed, self.halves, self.draw, self.nq_prefix = seed, halves, draw, nq_prefix
        self.fact_token, self.detect_subjects, self.chat = fact_token, detect_subjects, chat
        self.reading, self.cache, self.unknown_subjects = reading, cache, unknown_subjects
        self.protect_same_subject, self.forget_path = protect_same_subject, forget_path
        self.project, self.keep_texts, self.replaces = project, keep_texts, replaces

    def setup(self, stage: str) -> None:
        """Read and split the facts, and read the text: everything that can be wrong with the input shows here."""
        ledger, known, (forget, retain, protect) = self._drawn(self._read(self.path), stage)
        log.info("%d facts to forget, %d to keep, %d more to protect", len(forget), len(retain), len(protect))
        heldout: list[str] | None = None
        if self.heldout is not None:
            heldout = read_texts(self.heldout, self.reading.heldout_documents, "heldout")
        corpus, documents = self._texts(forget, stage) if stage == "fit" or heldout is None else ([], [])
        if heldout is None:
            kept = len(documents) - len(documents) // 10
            documents, heldout = documents[:kept], documents[kept:]
            # Wherever a draw's last tenth begins: what all draws keep ends near here.
            corpus = corpus[: len(corpus) - len(corpus) // 10]
        self.request = Request(
            forget=forget,
            retain=retain,
            protect=protect,
            known=known,
            unknown_subjects=[]
            if self.unknown_subjects is None
            else read_texts(self.unknown_subjects, sys.maxsize, "unknown_subjects"),
            text=RetainText(documents, self.reading, corpus),
            heldout=heldout[: self.reading.heldout_documents],
            seed=self.seed,
            cache=self._cache_folder,
            number=len(ledger.entries) + 1 if ledger else 0,
            history=ledger.history(keeps_texts=self.keep_texts, replaces=self.replaces) if ledger else None,
        )

    def settings(self) -> dict[str, object]:
        """Everything in this data that decides which weights a run ends with, by option."""
        text, reading, history = self.request.text, self.reading, self.request.history
        earlier = {"data.project": history.head} if history else {}
        return earlier | {
            "data.path, or another option that decides which facts are drawn": digest(
                *self.request.forget, "protected", *self.request.protect, "seed", self.request.seed
            ),
            "data.corpus": (self.corpus, digest(*text.documents), reading.max_length, reading.corpus_tokens),
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """What the module trains on in this epoch."""
        return _loader(self.module.training_batches(self.request))

    def val_dataloader(self) -> DataLoader[EvaluationBatch | None]:
        """Queries for each metric, and held-out text for the perplexity."""
        request = self.request
        facts = (request.forget, request.retain, request.heldout)
        more = (request.protected_others, request.same_subject)
        batches = evaluation_batches(self.module.lm, *facts, self.reading, *more)
        # A process without a share still has to take part in the sums that follow.
        return _loader([*rank_shard(batches)] or [None])

    def test_dataloader(self) -> DataLoader[EvaluationBatch | None]:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[list[Fact]]:
        """The facts to forget and to keep."""
        facts = [*self.request.forget, *self.request.retain]
        return _loader([facts[i : i + PREDICT_BATCH] for i in range(0, len(facts), PREDICT_BATCH)])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave batches as they are: the language model knows where its input belongs."""
        return batch

    @property
    def module(self) -> UnlearnModule:
        """The module that this data is read for.

        Raises:
            InputError: It is not an UnlearnModule.
        """
        module = self.trainer.lightning_module if self.trainer else None
        if not isinstance(module, UnlearnModule):
            raise InputError("model", type(module).__name__, "UnlearnDataModule reads data for an UnlearnModule.")
        return module

    def _read(self, path: str, parameter: str = "path") -> list[Fact]:
        facts = read_facts(path, detect_subjects=self.detect_subjects, nq_prefix=self.nq_prefix, parameter=parameter)
        if self.ids is not None and path == self.path:
            facts = facts_by_id(facts, read_texts(self.ids, sys.maxsize, "ids"))
        return [replace(fact.as_chat() if self.chat else fact, fact_token=self.fact_token) for fact in facts]

    def _drawn(
        self, facts: list[Fact], stage: str
    ) -> tuple[Ledger | None, list[Fact], tuple[list[Fact], list[Fact], list[Fact]]]:
        """The ledger, what is left of the facts by its requests, and which of them go and stay."""
        asked = None if self.forget_path is None else self._read(self.forget_path, "forget_path")
        if self.project is None:
            known = facts if asked is None else [*asked, *without(facts, asked)]
            return None, known, self._split(known, asked)
        ledger = Ledger.read(self.project) if stage == "fit" else Ledger.existing(self.project)
        before = self._before(ledger, facts, asked, stage)
        gone = before.forgotten(facts)
        self._check_ids(gone, asked)
        known = [fact for fact in facts if fact.id not in gone]
        known = known if asked is None else [*asked, *without(known, asked)]
        sets = self._split(known, asked)
        if stage == "fit":
            before.check_new(asked or [])
        return before, known, sets

    def _before(self, ledger: Ledger, facts: Sequence[Fact], asked: Sequence[Fact] | None, stage: str) -> Ledger:
        """The ledger as it was before this request, which may have its line already."""
        if stage == "fit":
            head = None if self.continues_from is None else saved_settings(self.continues_from).get("data.project")
            states = [ledger.until(number) for number in range(1, len(ledger.entries) + 1)]
            return next((state for state in states if repr(state.head) == head), ledger)
        names = self.forgotten or (self.forget_ids or () if asked is None else [fact.id for fact in asked])
        wanted = ledger.digests_of([fact for fact in (facts if asked is None else asked) if fact.id in set(names)])
        number = number_of(ledger.entries, wanted, self.replaces)
        return ledger if number is None else ledger.until(number)

    def _check_ids(self, gone: Mapping[str, int], asked: Sequence[Fact] | None) -> None:
        """Refuse ids of facts that are gone, by the numbers of the requests that have forgotten them."""
        lists = {"retain_ids": self.retain_ids, "protect_ids": self.protect_ids}
        for option, ids in ({"forget_ids": self.forget_ids} | lists if asked is None else lists).items():
            for name in ids or ():
                if name in gone:
                    raise known_already(option, name, gone[name])

    def _split(self, facts: Sequence[Fact], given: Sequence[Fact] | None) -> tuple[list[Fact], list[Fact], list[Fact]]:
        forget_ids = self.forget_ids if given is None else [fact.id for fact in given]
        asked = {
            "forget": self.forget_num if forget_ids is None else forget_ids,
            "retain": self.retain_num if self.retain_ids is None else self.retain_ids,
            "protect": self.protect_num if self.protect_ids is None else self.protect_ids,
        }
        by_record = self.draw == "records"
        forget, retain, protect = split_facts(facts, **asked, seed=self.seed, halves=self.halves, by_record=by_record)
        if self.protect_same_subject:
            taken = {fact.id for fact in (*retain, *protect)}
            protect += [fact for fact in about_subjects_of(forget, facts) if fact.id not in taken]
        return forget, retain, protect

    def _texts(self, forget: Sequence[Fact], stage: str) -> tuple[list[str], list[str]]:
        """The corpus, and those of its documents that name no forgotten subject."""
        corpus = read_texts(self.corpus, self.reading.corpus_documents, "corpus", self.reading.corpus_seed)
        documents = retain_documents(corpus, forget)
        if not documents and stage == "fit":
            raise InputError("corpus", self.corpus, "every document names a forgotten subject: add retain text.")
        log.info(
            "%d documents of retain text (%d more name a forgotten subject and are left out)",
            len(documents), len(corpus) - len(documents),
        )  # fmt: skip
        return corpus, documents

    @property
    def _cache_folder(self) -> Path | None:
        trainer = self.trainer
        if trainer is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        return Path(self.cache if self.cache is not None else Path(trainer.default_root_dir, "cache"))


def _loader(items: Iterable[T]) -> DataLoader[T]:
    """The items as they are, one per batch."""
    dataset = items if isinstance(items, Dataset | Sequence) else list(items)
    return DataLoader(cast("Dataset[T]", dataset), batch_size=None)
