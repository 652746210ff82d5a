"""A request's line in the ledger of its project folder."""

from contextlib import ExitStack
from typing import Any

from lightning import Callback, LightningModule, Trainer

from zu_lightning import (
    EditingModule,
    InputError,
    LayerProblem,
    UnlearnModule,
)
from zu_lightning.editing.request import History
from zu_lightning.ledger import locked
from zu_lightning.ledger.recording import CHANGED, Outcome, record, unchanged
from zu_lightning.lm.fingerprint import digests_of, layers_in
from zu_lightning.lm.loading import DECIDING_OPTIONS
from zu_lightning.modules.outputs import run_folder, unlearn_module
from zu_lightning.runtime.distributed import gather_to_rank_zero


class RecordRequest(Callback):
    """With ``data.project``, record the request when all is done.

    No other run can write into the project meanwhile. Without ``data.project`` this does nothing.
    """

    def __init__(self) -> None:
        self.lock = ExitStack()
        self.weights: dict[str, str] = {}
        """Digests of the weights before."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep others out, before anything is computed; all processes agree on it.

        Raises:
            InputError: Somebody else is at work, or has been since the ledger was read;
                or the module has no thin updates to record, or only a stand-in for its model.
        """
        history = _history(trainer, pl_module)
        if history is None:
            return
        if not isinstance(pl_module, EditingModule):
            remedy = f"{type(pl_module).__name__} has no thin updates for its ledger: edit layers, or set it to null."
            raise InputError("project", str(history.folder), remedy)
        if pl_module.random_tiny_model:
            raise InputError(
                "random_tiny_model", True, "a project needs the model that it is about: leave out one of the two."
            )
        refusal = self._refusal(trainer, history, pl_module) if trainer.is_global_zero else None
        refusal, head = trainer.strategy.broadcast((refusal, history.head))
        # Processes may have read the ledger at different times. All of them stop, or those that are left would wait.
        if trainer.strategy.reduce_boolean_decision(refusal is not None or head != history.head, all=False):
            self.lock.close()
            raise refusal or InputError("project", str(history.folder), CHANGED)

    def _refusal(self, trainer: Trainer, history: History, module: UnlearnModule) -> InputError | None:
        """Keep others out, or say why that is not possible."""
        continues = getattr(trainer.datamodule, "continues_from", None) is not None  # type: ignore[attr-defined]
        try:
            self.lock.enter_context(locked(history.folder))
            unchanged(history, module.request.forget if continues else ())
        except InputError as error:
            return error
        return None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Recognize the weights with which the request begins."""
        history = _history(trainer, pl_module)
        if history is not None:
            module = unlearn_module(pl_module)
            self.weights = digests_of(module.lm, [*layers_in(history.base), *module.layers])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what later requests need to keep this one in effect, in the first process, which records it."""
        if _history(trainer, pl_module) is not None and isinstance(batch, LayerProblem) and batch_idx == 0:
            own = batch.without_previous()
            columns = {name: getattr(own, name) for name in ("keys", "values", "deviations")}
            rows = {
                name: gather_to_rank_zero(some.detach().movedim(1, 0))
                for name, some in columns.items()
                if some is not None
            }
            kept = {name: some.movedim(0, 1) for name, some in rows.items() if some is not None}
            if kept:
                unlearn_module(pl_module).run.kept[batch.layer] = kept

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the request, after everything else is written; a run that is continued may have done so."""
        if _history(trainer, pl_module) is not None:
            folder, module = run_folder(trainer), unlearn_module(pl_module)
            if folder is not None and module.is_done:
                record(module.request, _outcome(module, self.weights), folder / "config.yaml")
        self.lock.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let others in again."""
        self.lock.close()


def _history(trainer: Trainer, module: LightningModule) -> History | None:
    """What the ledger says, if this is a fit that is to be recorded."""
    if trainer.state.fn != "fit" or trainer.fast_dev_run or not isinstance(module, UnlearnModule):  # type: ignore[attr-defined]
        return None
    return module.request.history


def _outcome(module: UnlearnModule, before: dict[str, str]) -> Outcome:
    """What is recorded of a run that is done."""
    run, number, options = module.run, module.request.number, module.load_options
    own = {key.layer: edit for key, edit in run.edits.items() if key.request == number}
    after = digests_of(module.lm, layers_in(before))
    return Outcome(
        model=module.model_name_or_path,
        loading={"dtype": module.dtype_name} | {name: options[name] for name in DECIDING_OPTIONS if name in options},
        settings=run.identity.get("settings", ""),
        versions=run.identity.get("versions", ""),
        weights={"before": before, "after": after},
        scores={"before": run.before, "after": run.after},
        earlier=run.measured.get("previous", {}).get("after", {}),
        edits=own,
        kept=run.kept,
    )
