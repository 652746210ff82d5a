"""Callbacks: the closed form, the report, the export, causal tracing, and resuming."""

from callbacks.attacks import Attacks
from callbacks.closed_form import ClosedForm
from callbacks.export import ExportEditedModel, ExportPretrained
from callbacks.report import Report
from callbacks.resume import Resume
from callbacks.trace import TraceLayers

__all__ = ["Attacks", "ClosedForm", "ExportEditedModel", "ExportPretrained", "Report", "Resume", "TraceLayers"]
