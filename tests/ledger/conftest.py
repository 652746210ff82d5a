"""A project whose requests are random updates of a tiny model: recorded, but never solved."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import random_lm
from zu_lightning import EditableLM, Fact, LayerEdit, LayerScores, LowRankUpdate, Request, RetainText, apply_update
from zu_lightning.ledger import Ledger, RequestEntry
from zu_lightning.ledger.files import CONFIGURATION
from zu_lightning.ledger.recording import record
from zu_lightning.lm.export import export_model
from zu_lightning.lm.fingerprint import digests_of

LAYERS = (0, 2)
SCORES = LayerScores(1.0, 0.5, 1.0, 0.5, relative_norm=0.1, rank=2, stored_error=0.0)


def people(count: int) -> list[Fact]:
    """Facts about as many people."""
    names, trades = ("Ada Novak", "Bruno Keller", "Greta Holm", "Lucía Peña"), ("baker", "miller", "cellist", "nurse")
    records = [
        {
            "id": f"fact-{i}",
            "subject": name,
            "prompt": "{} works as a",
            "target": trade,
            "paraphrases": [f"{name} is a"],
        }
        for i, (name, trade) in enumerate(zip(names, trades, strict=True))
    ]
    return [Fact.from_record(one, "a record", "0") for one in records[:count]]


class Project:
    """A project folder, and the model that it describes.

    Args:
        root: Where everything is.
        kept_in: Precision of the base model's file.
    """

    def __init__(self, root: Path, kept_in: torch.dtype = torch.float32) -> None:
        self.folder, self.base = root / "project", root / "base"
        self.lm = random_lm("llama")
        self.lm.model.to(kept_in)  # type: ignore[arg-type]
        export_model(self.lm, self.base)

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is now."""
        return Ledger.read(self.folder)

    def load_base(self) -> EditableLM:
        """The base model."""
        return EditableLM.from_pretrained(self.base)

    def keys(self, number: int, count: int) -> torch.Tensor:
        """Keys of the facts of a request: unit vectors, orthogonal to those of requests with other numbers."""
        keys = torch.zeros(self.lm.weight(0).shape[1], count, dtype=torch.float64)
        keys[range(4 * number, 4 * number + count), range(count)] = 1.0
        return keys

    def add(self, forget: Sequence[Fact], layers: Sequence[int] = LAYERS, *, keeps_texts: bool = True) -> Ledger:
        """Carry out a request with an update that adds something at its own keys, and record it."""
        ledger = self.ledger
        number = len(ledger.entries) + 1
        request = Request(forget, RetainText([]), number=number, history=ledger.history(keeps_texts=keeps_texts))
        known = self.keys(number, len(forget))
        edits = {}
        for layer in layers:
            left = torch.randn(self.lm.weight(layer).shape[0], len(forget)).double()
            edits[layer] = LayerEdit(LowRankUpdate(left, known.mT), SCORES)
        all_layers = sorted({*LAYERS, *layers})
        before = digests_of(self.lm, all_layers)
        for layer, edit in edits.items():
            apply_update(self.lm, layer, edit.update)
        values = torch.zeros(self.lm.weight(0).shape[0], len(forget), dtype=torch.float64)
        entry = RequestEntry(
            number=number,
            time="",
            model=str(self.base),
            settings="of a test",
            code={},
            weights={"before": before, "after": digests_of(self.lm, all_layers)},
            scores={"after": {"efficacy": 0.0}},
            previous_scores={},
            loading={"dtype": str(self.lm.weight(0).dtype).removeprefix("torch.")},
        )
        return record(request, entry, edits, {layer: {"keys": known, "values": values} for layer in layers})


def make_dependent(project: Project, share: float) -> None:
    """Two requests, the second of which has keys at which the first one adds something, too."""
    project.add(people(1))
    before = project.keys
    project.keys = lambda number, count: before(2, count) + share * before(1, count)  # type: ignore[method-assign]
    project.add(people(2)[1:])
    project.keys = before  # type: ignore[method-assign]
    (project.ledger.folder_of(2) / CONFIGURATION).touch()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    torch.manual_seed(1)
    return Project(tmp_path)
