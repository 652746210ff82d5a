"""Checks of a server: whether it serves the edited model."""

from zu_lightning.serving.command import main

__all__ = ["main"]
