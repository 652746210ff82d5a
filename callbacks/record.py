"""Record a request in the ledger of its project folder."""

from contextlib import ExitStack
from typing import Any

from lightning import Callback, LightningModule, Trainer

from zu_lightning import EditingModule, InputError, LayerProblem, UnlearnModule
from zu_lightning.editing.request import History
from zu_lightning.ledger import RequestEntry, locked
from zu_lightning.ledger.recording import CHANGED, record, source_digest, unchanged
from zu_lightning.lm.fingerprint import digests_of, layers_in
from zu_lightning.lm.loading import DECIDING_OPTIONS
from zu_lightning.modules.outputs import run_folder, unlearn_module
from zu_lightning.runtime.distributed import gather_to_rank_zero
from zu_lightning.runtime.timing import now


class RecordRequest(Callback):
    """With ``data.project``, lock the project during the run, and record the request at its end.

    Without ``data.project`` this does nothing.
    """

    def __init__(self) -> None:
        self.lock = ExitStack()
        self.weights: dict[str, str] = {}
        """Digests of the weights before the edit."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the project before anything is computed; all processes stop if one of them is refused.

        Raises:
            InputError: Another run holds the lock, or has written to the ledger since it was read; the module has no
                low-rank updates to record; or its model is random.
        """
        history = _history(trainer, pl_module)
        if history is None:
            return
        if not isinstance(pl_module, EditingModule):
            remedy = f"{type(pl_module).__name__} has no low-rank updates to record: edit layers, or set it to null."
            raise InputError("project", str(history.folder), remedy)
        if pl_module.random_tiny_model:
            raise InputError("random_tiny_model", True, "a project needs its own model: leave out one of the two.")
        refusal = None
        if trainer.is_global_zero:
            continues = getattr(trainer.datamodule, "continues_from", None) is not None  # type: ignore[attr-defined]
            try:
                self.lock.enter_context(locked(history.folder))
                unchanged(history, pl_module.request.forget if continues else ())
            except InputError as error:
                refusal = error
        refusal, head = trainer.strategy.broadcast((refusal, history.head))
        # Processes may have read the ledger at different times. If one stops, all stop: others would wait for it.
        if trainer.strategy.reduce_boolean_decision(refusal is not None or head != history.head, all=False):
            self.lock.close()
            raise refusal or InputError("project", str(history.folder), CHANGED)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take digests of the weights before the edit."""
        history = _history(trainer, pl_module)
        if history is not None:
            module = unlearn_module(pl_module)
            self.weights = digests_of(module.lm, [*layers_in(history.base), *module.layers])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Collect, in rank zero, the keys and values that later requests preserve."""
        if _history(trainer, pl_module) is not None and isinstance(batch, LayerProblem) and batch_idx == 0:
            problem, preserved = batch.without_previous(), {}
            for name in ("keys", "values", "deviations"):
                columns = getattr(problem, name)
                rows = None if columns is None else gather_to_rank_zero(columns.detach().movedim(1, 0))
                if rows is not None:
                    preserved[name] = rows.movedim(0, 1)
            if preserved:
                unlearn_module(pl_module).run.kept[batch.layer] = preserved

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the request after everything else is written, unless a killed run that this one continues has."""
        if _history(trainer, pl_module) is not None:
            folder, module = run_folder(trainer), unlearn_module(pl_module)
            if folder is not None and module.is_done:
                number = module.request.number
                edits = {key.layer: edit for key, edit in module.run.edits.items() if key.request == number}
                entry = _entry(module, self.weights)
                record(module.request, entry, edits, module.run.kept, folder / "config.yaml")
        self.lock.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the lock."""
        self.lock.close()


def _history(trainer: Trainer, module: LightningModule) -> History | None:
    """State of the ledger before a fit that has to be recorded; ``None`` otherwise."""
    if trainer.state.fn != "fit" or trainer.fast_dev_run or not isinstance(module, UnlearnModule):  # type: ignore[attr-defined]
        return None
    return module.request.history


def _entry(module: UnlearnModule, before: dict[str, str]) -> RequestEntry:
    """The ledger entry of a finished run."""
    run, options = module.run, module.load_options
    previous = run.measured.get("previous", {}).get("after", {})
    return RequestEntry(
        number=module.request.number,
        time=now(),
        model=module.model_name_or_path,
        settings=run.identity.get("settings", ""),
        code={"versions": run.identity.get("versions", ""), "source": source_digest()},
        weights={"before": before, "after": digests_of(module.lm, layers_in(before))},
        scores={"before": run.before, "after": run.after},
        previous_scores={str(number): scores for number, scores in previous.items()},
        loading={"dtype": module.dtype_name} | {name: options[name] for name in DECIDING_OPTIONS if name in options},
    )
