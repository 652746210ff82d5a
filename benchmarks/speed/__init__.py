"""Measurements of time and memory, run from the checkout: ``python -m benchmarks.speed.<name>``."""
