"""Backup, restore and recovery: what the command line and users' programs call."""

from ..storage import SetInUseError, StorageError, VerificationError
from .backing_up import backup
from .chains import ChainError, is_set
from .common import ArgumentError, Result, tool_version
from .doctor import Check, diagnose
from .events import PHASES, Progress, ProgressEvent
from .external import CommandFailedError
from .lineup import FreezeTimeoutError
from .passwords import password_from
from .piping import pipe_backup, pipe_restore
from .preview import backup_text, chain_texts, restore_text
from .recovery import Unfinished, recover
from .restoring import restore
from .restoring_chain import restore_chain
from .selectors import Skipped, is_selector
from .server_address import login_of
from .several import Several, backup_several
from .snapshotting import backup_snapshot, restore_snapshot
from .statements import SQLError, StatementLostError

__all__ = [
    "PHASES",
    "ArgumentError",
    "ChainError",
    "Check",
    "CommandFailedError",
    "FreezeTimeoutError",
    "Progress",
    "ProgressEvent",
    "Result",
    "SQLError",
    "SetInUseError",
    "Several",
    "Skipped",
    "StatementLostError",
    "StorageError",
    "Unfinished",
    "VerificationError",
    "backup",
    "backup_several",
    "backup_snapshot",
    "backup_text",
    "chain_texts",
    "diagnose",
    "is_selector",
    "is_set",
    "login_of",
    "password_from",
    "pipe_backup",
    "pipe_restore",
    "recover",
    "restore",
    "restore_chain",
    "restore_snapshot",
    "restore_text",
    "tool_version",
]
