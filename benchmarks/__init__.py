"""Measurements for the documentation, run from the checkout: ``python -m benchmarks.<name>``."""
