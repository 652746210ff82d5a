"""Callbacks: the closed form, the report, and the export."""

from callbacks.closed_form import ClosedForm
from callbacks.export import ExportEditedModel, ExportPretrained
from callbacks.report import Report

__all__ = ["ClosedForm", "ExportEditedModel", "ExportPretrained", "Report"]
