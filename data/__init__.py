"""Data modules: what is forgotten, what is kept, and the demo world."""

from data.pretrain import WorldTextDataModule
from data.unlearn import UnlearnDataModule

__all__ = ["UnlearnDataModule", "WorldTextDataModule"]
