"""Callbacks: the closed form, attacks, general ability, pictures, the report, the export, the ledger, and resuming."""

from callbacks.attacks import Attacks
from callbacks.closed_form import ClosedForm
from callbacks.downstream import Downstream
from callbacks.export import ExportEditedModel, ExportPretrained
from callbacks.record import RecordRequest
from callbacks.report import Report
from callbacks.representations import Representations
from callbacks.resume import Resume
from callbacks.trace import TraceLayers

__all__ = [
    "Attacks",
    "ClosedForm",
    "Downstream",
    "ExportEditedModel",
    "ExportPretrained",
    "RecordRequest",
    "Report",
    "Representations",
    "Resume",
    "TraceLayers",
]
