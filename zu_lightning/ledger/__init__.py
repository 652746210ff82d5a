"""Requests over time: a ledger of what a model was made to forget, and what can be done with it."""

from zu_lightning.ledger.entries import RequestEntry, UndoEntry
from zu_lightning.ledger.ledger import Ledger, locked

__all__ = ["Ledger", "RequestEntry", "UndoEntry", "locked"]
