"""What previous requests have done to the model of a project."""

from zu_lightning.editing.editor import LayerEdit, LayerScores
from zu_lightning.editing.request import Request
from zu_lightning.lm.editable import EditableLM
from zu_lightning.lm.fingerprint import check_base
from zu_lightning.lm.updates import apply_updates
from zu_lightning.modules.state import EditKey


def previous_edits(request: Request) -> dict[EditKey, LayerEdit]:
    """The edits of previous requests, in the order in which they were written."""
    return {
        EditKey(one.number, layer): LayerEdit(found.update, LayerScores(**found.scores))
        for one in request.previous
        for layer, found in one.layers.items()
    }


def apply_previous(lm: EditableLM, request: Request) -> None:
    """Add the updates of previous requests to the base model.

    Raises:
        InputError: It is not the model with which the ledger of the project began.
    """
    check_base(lm, request.history.base if request.history else {}, "model_name_or_path")
    apply_updates(lm, [one.updates for one in request.previous])
