"""Backup, restore and recovery: what the command line and users' programs call."""

from ..storage import SetInUseError, StorageError, VerificationError
from .backing_up import backup
from .common import ArgumentError, Result, tool_version
from .events import PHASES, Progress, ProgressEvent
from .recovery import Unfinished, recover
from .restoring import restore
from .statements import SQLError, StatementLostError

__all__ = [
    "PHASES",
    "ArgumentError",
    "Progress",
    "ProgressEvent",
    "Result",
    "SQLError",
    "SetInUseError",
    "StatementLostError",
    "StorageError",
    "Unfinished",
    "VerificationError",
    "backup",
    "recover",
    "restore",
    "tool_version",
]
