"""Data modules: what is forgotten, what is kept, what is taught, and the demo world."""

from data.pretrain import WorldTextDataModule
from data.teach import TeachDataModule
from data.unlearn import UnlearnDataModule

__all__ = ["TeachDataModule", "UnlearnDataModule", "WorldTextDataModule"]
