"""Callbacks: closed form, measurements, layer tracing, export, report, project record, and resuming."""

from callbacks.closed_form import ClosedForm
from callbacks.estimate import Estimate
from callbacks.export import ExportEditedModel, ExportPretrained, ExportTaught
from callbacks.measure import Attacks, Downstream, Measure, Representations
from callbacks.record import RecordRequest
from callbacks.report import Report
from callbacks.resume import Resume
from callbacks.trace import TraceLayers

__all__ = [
    "Attacks",
    "ClosedForm",
    "Downstream",
    "Estimate",
    "ExportEditedModel",
    "ExportPretrained",
    "ExportTaught",
    "Measure",
    "RecordRequest",
    "Report",
    "Representations",
    "Resume",
    "TraceLayers",
]
