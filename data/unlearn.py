"""Facts to forget and to keep, retain text, and the batches that modules train on and are evaluated with."""

import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import torch
from lightning import LightningDataModule, LightningModule
from torch.utils.data import DataLoader, Dataset

from zu_lightning import (
    EvaluationBatch,
    Fact,
    FactToken,
    InputError,
    ReadingOptions,
    Request,
    UnlearnModule,
    digest,
    facts_by_id,
    rank_shard,
    read_facts,
    read_texts,
    split_facts,
)
from zu_lightning.editing.method import Method
from zu_lightning.evaluation.known import Certainty, answered_facts, measure_known
from zu_lightning.facts.splits import without
from zu_lightning.ledger import Ledger
from zu_lightning.ledger.entries import number_of
from zu_lightning.ledger.ledger import already_forgotten
from zu_lightning.modules.state import saved_settings
from zu_lightning.report.measurements import request_batches

log = logging.getLogger(__name__)

T = TypeVar("T")

PREDICT_BATCH = 16
"""Number of prompts in a batch of ``predict``."""


class UnlearnDataModule(LightningDataModule):
    """Forget set, retain set, and retain text.

    :meth:`connect` it with a module before a run. ``train_dataloader`` is called before each epoch
    (``reload_dataloaders_every_n_epochs=1``) and asks the module what it trains on: an editing module then reads the
    keys of that epoch's layer, with the layers below already edited.

    Args:
        path: Facts: our own records or those of CounterFact, zsRE, MQuAKE, or TOFU, in a file or on the hub.
        corpus: Retain text: a file with one document per line, or a data set on the hub. Documents that name a
            forgotten subject are left out.
        heldout: Text for the perplexity, in the same forms. By default the last tenth of the corpus, which is then
            not used for anything else.
        ids_file: File whose lines begin with an id, up to the first tab; those with ``#`` are comments. Only these
            facts are read, such as those of ``python train.py known``.
        known: Whether to draw only facts that the model answers, by greedy decoding before any edit; a number above 0
            and at most 1 also asks for at least this probability of the answer. Facts that are named by an id or by
            ``forget_path`` are taken as they are; relations still have the prompts, answers, and names of all facts.
        forget_num: How many facts (or records) to forget, drawn by seed; ignored if ``forget_ids`` is given.
        retain_num: How many other facts are only measured, drawn by seed; ignored if ``retain_ids`` is given. The
            method never sees them.
        protect_num: Number of additional facts that the method must preserve, drawn by seed, after the others; fewer
            if not as many are left; ignored if ``protect_ids`` is given. By default what the method says.
        protect_same_subject: Whether to protect all other facts about the forgotten subjects, too, except those that
            are only measured. By default what the method says.
        unknown_subjects: File with one name per line: subjects that the model knows nothing about, for
            ``method.target_kind: reference``. By default names are made up from halves of those of the data set.
        seed: Seed of the draw and of the context templates.
        forget_path: File with the facts to forget, in the forms of ``path``, which then only says what stays. It may
            hold facts of ``path``. ``forget_num`` and ``forget_ids`` are ignored.
        forget_ids: Ids of the facts to forget.
        retain_ids: Ids of the facts that are only measured.
        protect_ids: Ids of the facts that the method must preserve.
        draw: Whether the numbers count ``facts``, or ``records`` whose facts go together. Only MQuAKE has records of
            several facts, its rewritten hops.
        fact_token: Where the model is edited: at the subject's last or first token, or at the prompt's last.
        detect_subjects: Whether to look for the subject in the prompt if a record names none.
        chat: Whether prompts are given to the model as a user's message, through its chat template.
        reading: How much text is read, and in what batches.
        cache: Folder in which runs share results: neutral targets, values, second moments, and the scores before. By
            default ``cache`` under the output folder; give all runs of a comparison the same one.
        project: Folder of a model that gets one request after another: a run starts from the updates of the previous
            requests in its ledger, and keeps them in effect.
        keep_texts: Whether the project folder keeps the texts of this request. Without them it can be neither
            evaluated again nor solved again, but stays in effect.
        replaces: Number of a request of the project that was taken back together with another, to solve it again.
    """

    request: Request
    module: UnlearnModule | None = None
    """The module that the data is read for; see :meth:`connect`."""
    method: Method = Method()
    """Its method, which says what is protected, and how the release draws."""
    continues_from: str | None = None
    """Checkpoint from which a run is continued."""
    forgotten: Sequence[str] | None = None
    """Ids of the facts of a run that is over, to read its data as it did."""

    def __init__(
        self,
        path: str = "data/demo/facts.jsonl",
        corpus: str = "data/demo/corpus.txt",
        heldout: str | None = None,
        ids_file: str | None = None,
        known: bool | float = False,
        forget_num: int = 10,
        retain_num: int = 200,
        protect_num: int | None = None,
        protect_same_subject: bool | None = None,
        unknown_subjects: str | None = None,
        seed: int = 0,
        forget_path: str | None = None,
        forget_ids: list[str] | None = None,
        retain_ids: list[str] | None = None,
        protect_ids: list[str] | None = None,
        draw: Literal["facts", "records"] = "facts",
        fact_token: FactToken = "subject_last",
        detect_subjects: bool = True,
        chat: bool = False,
        reading: ReadingOptions = ReadingOptions(),
        cache: str | None = None,
        project: str | None = None,
        keep_texts: bool = True,
        replaces: int | None = None,
    ) -> None:
        super().__init__()
        self.path, self.corpus, self.heldout, self.ids_file, self.known = path, corpus, heldout, ids_file, known
        self.forget_num, self.retain_num, self.protect_num = forget_num, retain_num, protect_num
        self.forget_ids, self.retain_ids, self.protect_ids = forget_ids, retain_ids, protect_ids
        self.seed, self.draw, self.fact_token = seed, draw, fact_token
        self.detect_subjects, self.chat = detect_subjects, chat
        self.reading, self.cache, self.unknown_subjects = reading, cache, unknown_subjects
        self.protect_same_subject, self.forget_path = protect_same_subject, forget_path
        self.project, self.keep_texts, self.replaces = project, keep_texts, replaces
        self.certainties: dict[str, Certainty] | None = None
        """How sure the model was of each fact, by its id, before any edit."""

    def connect(self, module: LightningModule) -> None:
        """Connect data and module, once, before a run: the data asks for batches, the module for the request.

        Raises:
            InputError: It is not an UnlearnModule.
        """
        if not isinstance(module, UnlearnModule):
            raise InputError("model", type(module).__name__, "UnlearnDataModule reads data for an UnlearnModule.")
        self.module, self.method = module, module.method
        module.connect(self)

    @property
    def connected(self) -> UnlearnModule:
        """The module.

        Raises:
            InputError: There is none.
        """
        if self.module is None:
            raise InputError("data", type(self).__name__, "call data.connect(module) before the trainer.")
        return self.module

    def setup(self, stage: str) -> None:
        """Read and draw the facts, and read the text: everything that can be wrong with the input shows here."""
        if not isinstance(self.known, bool) and not 0 < self.known <= 1:
            raise InputError("known", self.known, "give true, false, or a probability above 0 and at most 1.")
        method, facts = self.method, self._read(self.path)
        given = None if self.forget_path is None else self._read(self.forget_path, "forget_path")
        ledger, left = self._left_by_ledger(facts, given, stage)
        heldout: list[str] | None = None
        if self.heldout is not None:
            heldout = read_texts(self.heldout, self.reading.heldout_documents, "heldout")
        corpus: list[str] = []
        if stage == "fit" or heldout is None:
            corpus = read_texts(self.corpus, self.reading.corpus_documents, "corpus", method.release.corpus_seed)
        names = self.unknown_subjects
        forget_ids = self.forget_ids if given is None else [fact.id for fact in given]
        forget = self.forget_num if forget_ids is None else forget_ids
        retain = self.retain_num if self.retain_ids is None else self.retain_ids
        protect = self.protect_num if self.protect_ids is None else self.protect_ids
        by_record, answered = self.draw == "records", None
        if self.known is not False:
            # A wrong id or number shows before the model is loaded.
            halves = method.release.split_halves
            split_facts(left, forget, retain, protect or 0, split_halves=halves, by_record=by_record)
            answered = self._answered([*facts, *(given or [])], left)
            named = {name for ids in (forget, retain, protect) if isinstance(ids, Sequence) for name in ids}
            if unanswered := named - {fact.id for fact in answered}:
                text = "the model does not answer %d of the %d facts that are given or named by ids"
                log.warning(text, len(unanswered), len(named))
        self.request = Request.draw(
            left,
            corpus,
            method=method,
            forget=forget,
            retain=retain,
            protect=protect,
            answered=answered,
            protect_same_subject=self.protect_same_subject,
            heldout=heldout,
            reading=self.reading,
            by_record=by_record,
            seed=self.seed,
            unknown_subjects=[] if names is None else read_texts(names, sys.maxsize, "unknown_subjects"),
            cache=self._cache_folder,
            number=len(ledger.entries) + 1 if ledger else 0,
            history=ledger.history(keeps_texts=self.keep_texts, replaces=self.replaces) if ledger else None,
        )

    def settings(self) -> dict[str, object]:
        """Everything in this data that decides which weights a run ends with, by option."""
        text, reading, history = self.request.text, self.reading, self.request.history
        project = {"data.project": history.head} if history else {}
        return project | {
            "data.path, or another option that decides which facts are drawn": digest(
                *self.request.forget, "protected", *self.request.protect, "seed", self.request.seed
            ),
            "data.corpus": (self.corpus, digest(*text.documents), reading.max_length, reading.corpus_tokens),
        }

    def train_dataloader(self) -> DataLoader[Any]:
        """What the module trains on in this epoch."""
        return batch_loader(self.connected.training_batches())

    def val_dataloader(self) -> DataLoader[EvaluationBatch | None]:
        """Queries for each metric, and held-out text for the perplexity."""
        batches = request_batches(self.connected.lm, self.request)
        # A process without a share still has to take part in the sums that follow.
        return batch_loader([*rank_shard(batches)] or [None])

    def test_dataloader(self) -> DataLoader[EvaluationBatch | None]:
        """The same as for validation."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[list[Fact]]:
        """The facts to forget and to keep."""
        facts = [*self.request.forget, *self.request.retain]
        return batch_loader([facts[i : i + PREDICT_BATCH] for i in range(0, len(facts), PREDICT_BATCH)])

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave batches as they are: the language model knows where its input belongs."""
        return batch

    def _read(self, path: str, parameter: str = "path") -> list[Fact]:
        nq_prefix = self.method.release.nq_prefix
        facts = read_facts(path, detect_subjects=self.detect_subjects, nq_prefix=nq_prefix, parameter=parameter)
        if self.ids_file is not None and path == self.path:
            facts = facts_by_id(facts, read_texts(self.ids_file, sys.maxsize, "ids_file"))
        return [replace(fact.as_chat() if self.chat else fact, fact_token=self.fact_token) for fact in facts]

    def _answered(self, facts: Sequence[Fact], left: Sequence[Fact]) -> list[Fact]:
        """Those of the facts left that the model answers; all facts are measured together, for all requests alike."""
        if self.certainties is None:
            module = self.connected
            module.check_model_options()  # Lightning sets the module up only after the data
            with self.trainer.init_module():  # type: ignore[union-attr]  # as Lightning has it loaded otherwise
                lm = module.load_model()
            with module.monitor.timed("known"):
                self.certainties = measure_known(
                    lm, facts, batch_tokens=self.reading.batch_tokens, cache=self._cache_folder, monitor=module.monitor
                )
        return answered_facts(left, self.certainties, 0.0 if self.known is True else self.known)

    def _left_by_ledger(
        self, facts: list[Fact], given: list[Fact] | None, stage: str
    ) -> tuple[Ledger | None, list[Fact]]:
        """The project's ledger as it was before this request, and the facts that its requests have left."""
        if self.project is None:
            return None, facts if given is None else [*given, *without(facts, given)]
        ledger = Ledger.read(self.project) if stage == "fit" else Ledger.existing(self.project)
        before = self._before(ledger, facts, given, stage)
        gone = before.forgotten(facts)
        self._check_ids(gone, given)
        left = [fact for fact in facts if fact.id not in gone]
        if stage == "fit":
            before.check_new(given or [])
        return before, left if given is None else [*given, *without(left, given)]

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
                    raise already_forgotten(option, name, gone[name])

    @property
    def _cache_folder(self) -> Path | None:
        trainer = self.trainer
        if trainer is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return None
        return Path(self.cache if self.cache is not None else Path(trainer.default_root_dir, "cache"))


def batch_loader(items: Iterable[T]) -> DataLoader[T]:
    """The items as they are, one per batch."""
    dataset = items if isinstance(items, Dataset | Sequence) else list(items)
    return DataLoader(cast("Dataset[T]", dataset), batch_size=None)
