"""Measurements of a run, and how their results are shown."""
