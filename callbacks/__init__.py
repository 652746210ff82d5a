"""Callbacks: the closed form, the report, the picture of representations, the export, and resuming."""

from callbacks.attacks import Attacks
from callbacks.closed_form import ClosedForm
from callbacks.export import ExportEditedModel, ExportPretrained
from callbacks.report import Report
from callbacks.representations import Representations
from callbacks.resume import Resume

__all__ = ["Attacks", "ClosedForm", "ExportEditedModel", "ExportPretrained", "Report", "Representations", "Resume"]
