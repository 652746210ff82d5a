"""Requests over time: the ledger of a project folder, and the commands that verify, revert, merge, and clean up."""

from zu_lightning.ledger.chain import locked
from zu_lightning.ledger.commands import main
from zu_lightning.ledger.entries import RequestEntry, RevertEntry
from zu_lightning.ledger.ledger import Ledger

__all__ = ["Ledger", "RequestEntry", "RevertEntry", "locked", "main"]
