"""What the options of BACKUP and RESTORE are, where they may stand, and which of them the stand-in honours."""

from __future__ import annotations

from typing import NoReturn

from ..messages import SqlError, message
from .statement import DATES, NUMBERS, SWITCHES, TEXTS, Statement
from .tokens import fail

# ---- What the stand-in never honours. COMPRESSION and the like have a message of their own.

NEVER = {
    "enable_broker", "error_broker_conversations", "file_snapshot", "filegroups", "files", "keep_cdc",
    "keep_replication", "metadata_only", "new_broker", "partial", "read_write_filegroups", "restart",
    "restricted_user", "stop_at_mark", "stop_before_mark",
}  # fmt: skip
# A page that cannot be trusted is no page of any state: there is nothing to go on with.
NEVER_OF_RESTORE = {"continue_after_error"}
# Words of SQL Server for which the stand-in has no field: refused wherever SQL Server takes them.
WORDS_REFUSED = {
    "BACKUP": {"CREDENTIAL", "MEDIAPASSWORD", "PASSWORD"},
    "RESTORE": {"CREDENTIAL", "FILESTREAM", "KEEP_TEMPORAL_RETENTION", "MEDIAPASSWORD", "PASSWORD", "DBNAME"},
}
EDITION = "Express Edition (64-bit)"  # one that has neither compression nor encryption of backups

# ---- Grammar.

_DEVICE = {
    "block_size", "buffer_count", "checksum", "continue_after_error", "max_transfer_size", "media_name", "rewind",
    "stats", "unload",
}  # fmt: skip
_BACKUP = _DEVICE | {
    "compression", "copy_only", "description", "expire_date", "format", "init", "media_description", "name", "restart",
    "retain_days", "skip",
}  # fmt: skip
_RESTORE = _DEVICE | {
    "file", "keep_cdc", "keep_replication", "moves", "norecovery", "partial", "recovery", "replace", "restart",
    "restricted_user", "standby", "stop_at", "stop_at_mark", "stop_before_mark", "enable_broker", "new_broker",
    "error_broker_conversations",
}  # fmt: skip
ALLOWED = {
    "BACKUP DATABASE": _BACKUP | {"differential", "file_snapshot", "metadata_only", "snapshot"},
    "BACKUP LOG": _BACKUP | {"file_snapshot", "no_truncate", "norecovery", "standby"},
    "RESTORE DATABASE": _RESTORE | {"metadata_only", "snapshot"},
    "RESTORE LOG": _RESTORE,
    "RESTORE HEADERONLY": _DEVICE | {"file"},
    "RESTORE FILELISTONLY": _DEVICE | {"file"},
    "RESTORE LABELONLY": _DEVICE,
    "RESTORE VERIFYONLY": _DEVICE | {"file", "load_history", "moves"},
}
_EVERY = {verb: set().union(*(fields for name, fields in ALLOWED.items() if name.startswith(verb)))
          for verb in ("BACKUP", "RESTORE")}  # fmt: skip
# Word: its field, and the value of a switch.
_WORDS: dict[str, tuple[str, bool | None]] = {
    **{word: (field, None) for fields in (NUMBERS, TEXTS, DATES) for field, word in fields.items()},
    **{on: (field, True) for field, (on, _) in SWITCHES.items()},
    **{off: (field, False) for field, (_, off) in SWITCHES.items() if off},
    "MOVE": ("moves", None),
}
# Options of which only one may stand.
EXCLUSIVE = (("norecovery", "recovery", "standby"), ("expire_date", "retain_days"),
             ("stop_at", "stop_at_mark", "stop_before_mark"))  # fmt: skip


def option(verb: str, word: str) -> tuple[str, bool | None] | None:
    """The field of an option of this verb and the value of a switch; None where there is none."""
    found = _WORDS.get(word)
    return found if found is not None and found[0] in _EVERY[verb] else None


def word_of(field: str, value: object = None) -> str:
    """The word that gives a field this value, as messages print it."""
    words = [word for word, (name, on) in _WORDS.items() if name == field and (on is None or on == value)]
    return words[0].lower() if words else {"files": "file", "filegroups": "filegroup"}.get(field, field)


def not_in_edition(operation: str, what: str, line: int = 1) -> NoReturn:
    """Refuse what SQL Server refuses in this edition."""
    problem = message(1844, f"{operation} WITH {what}", EDITION, line=line)
    raise SqlError((problem, message(3013, operation, line=line)))


def refuse(statement: Statement) -> None:
    """Refuse what the stand-in does not honour.

    Raises
    ------
    SqlError
        1844 (COMPRESSION), 3032 (an option).
    """
    if statement.compression:
        not_in_edition(statement.operation, "COMPRESSION")
    for field in sorted(NEVER | (NEVER_OF_RESTORE if statement.verb == "RESTORE" else set())):
        value = getattr(statement, field)
        if value is not None and value is not False and value != ():  # an opposite, such as NOINIT, is the default
            fail(3032, word_of(field, value))
