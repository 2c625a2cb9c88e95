"""A BACKUP or RESTORE as data, and as text again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .tokens import quote_name, quote_string

# Field: the words for True and for False.
SWITCHES: dict[str, tuple[str, str | None]] = {
    "differential": ("DIFFERENTIAL", None),
    "copy_only": ("COPY_ONLY", None),
    "compression": ("COMPRESSION", "NO_COMPRESSION"),
    "checksum": ("CHECKSUM", "NO_CHECKSUM"),
    "continue_after_error": ("CONTINUE_AFTER_ERROR", "STOP_ON_ERROR"),
    "format": ("FORMAT", "NOFORMAT"),
    "init": ("INIT", "NOINIT"),
    "skip": ("SKIP", "NOSKIP"),
    "rewind": ("REWIND", "NOREWIND"),
    "unload": ("UNLOAD", "NOUNLOAD"),
    "no_truncate": ("NO_TRUNCATE", None),
    "norecovery": ("NORECOVERY", None),
    "recovery": ("RECOVERY", None),
    "replace": ("REPLACE", None),
    "restart": ("RESTART", None),
    "restricted_user": ("RESTRICTED_USER", None),
    "keep_replication": ("KEEP_REPLICATION", None),
    "keep_cdc": ("KEEP_CDC", None),
    "partial": ("PARTIAL", None),
    "load_history": ("LOADHISTORY", None),
    "snapshot": ("SNAPSHOT", None),
    "metadata_only": ("METADATA_ONLY", None),
    "file_snapshot": ("FILE_SNAPSHOT", None),
    "enable_broker": ("ENABLE_BROKER", None),
    "new_broker": ("NEW_BROKER", None),
    "error_broker_conversations": ("ERROR_BROKER_CONVERSATIONS", None),
}
NUMBERS = {
    "block_size": "BLOCKSIZE",
    "buffer_count": "BUFFERCOUNT",
    "max_transfer_size": "MAXTRANSFERSIZE",
    "stats": "STATS",
    "retain_days": "RETAINDAYS",
    "file": "FILE",
}
TEXTS = {
    "name": "NAME",
    "description": "DESCRIPTION",
    "media_name": "MEDIANAME",
    "media_description": "MEDIADESCRIPTION",
    "standby": "STANDBY",
    "stop_at_mark": "STOPATMARK",
    "stop_before_mark": "STOPBEFOREMARK",
}
DATES = {"expire_date": "EXPIREDATE", "stop_at": "STOPAT"}


@dataclass(frozen=True)
class Statement:
    """A BACKUP or RESTORE over virtual devices (section 12.1).

    Parameters
    ----------
    verb : str
        ``"BACKUP"`` or ``"RESTORE"``.
    database : str
        Empty where the statement names none.
    devices : tuple of str
        Names of the virtual devices; the first is the name of the set. None where RESTORE only recovers a database.
    kind : str
        ``"DATABASE"``, ``"LOG"``, ``"HEADERONLY"``, ``"FILELISTONLY"``, ``"LABELONLY"`` or ``"VERIFYONLY"``.
    files, filegroups : tuple of str
        Parts of the database, by logical names.
    read_write_filegroups : bool
    block_size, buffer_count, max_transfer_size : int or None
        Bytes, number, bytes; None where not given.
    stats : int or None
        Percent between two progress messages.
    checksum, continue_after_error, format, init, skip, rewind, unload, compression : bool or None
        The option, its opposite (NO_CHECKSUM, STOP_ON_ERROR, NOFORMAT, ...), or neither.
    name, description, media_name, media_description : str or None
    expire_date : datetime or None
    retain_days : int or None
    differential, copy_only, no_truncate, norecovery, snapshot, recovery, replace : bool
        COPY_ONLY of a differential backup means nothing, and is false.
    standby : str or None
        Path of the undo file.
    moves : tuple of (str, str)
        Logical file name and new path.
    file : int or None
        Number of the backup set on the medium, from 1.
    stop_at : datetime or None
    stop_at_mark, stop_before_mark : str or None
    stop_after : datetime or None
        AFTER of either mark.
    """

    verb: str
    database: str
    devices: tuple[str, ...]
    block_size: int | None = None
    buffer_count: int | None = None
    max_transfer_size: int | None = None
    stats: int | None = None
    checksum: bool | None = None
    kind: str = "DATABASE"
    files: tuple[str, ...] = ()
    filegroups: tuple[str, ...] = ()
    read_write_filegroups: bool = False
    continue_after_error: bool | None = None
    differential: bool = False
    copy_only: bool = False
    compression: bool | None = None
    name: str | None = None
    description: str | None = None
    media_name: str | None = None
    media_description: str | None = None
    expire_date: datetime | None = None
    retain_days: int | None = None
    format: bool | None = None
    init: bool | None = None
    skip: bool | None = None
    rewind: bool | None = None
    unload: bool | None = None
    no_truncate: bool = False
    norecovery: bool = False
    recovery: bool = False
    standby: str | None = None
    snapshot: bool = False
    metadata_only: bool = False
    file_snapshot: bool = False
    replace: bool = False
    restart: bool = False
    restricted_user: bool = False
    keep_replication: bool = False
    keep_cdc: bool = False
    enable_broker: bool = False
    new_broker: bool = False
    error_broker_conversations: bool = False
    partial: bool = False
    load_history: bool = False
    moves: tuple[tuple[str, str], ...] = ()
    file: int | None = None
    stop_at: datetime | None = None
    stop_at_mark: str | None = None
    stop_before_mark: str | None = None
    stop_after: datetime | None = None

    @property
    def operation(self) -> str:
        return f"{self.verb} {self.kind}"

    def to_sql(self) -> str:
        """The statement as text that parses to it again."""
        text = self.operation
        if self.database:
            text += f" {quote_name(self.database)}"
        parts = [f"FILE = {quote_string(file)}" for file in self.files]
        parts += [f"FILEGROUP = {quote_string(group)}" for group in self.filegroups]
        if self.read_write_filegroups:
            parts.append("READ_WRITE_FILEGROUPS")
        if parts:
            text += f" {', '.join(parts)}"
        joint = "TO" if self.verb == "BACKUP" else "FROM"
        devices = ", ".join(f"VIRTUAL_DEVICE = {quote_string(name)}" for name in self.devices)
        if self.devices:
            text += f" {joint} {devices}"
        options = self._options()
        return text + (f" WITH {', '.join(options)}" if options else "")

    def _options(self) -> list[str]:
        options = []
        for field, (on, off) in SWITCHES.items():
            value = getattr(self, field)
            if value:
                options.append(on)
            elif value is False and off is not None:
                options.append(off)
        for fields in (NUMBERS, TEXTS, DATES):
            for field, word in fields.items():
                value = getattr(self, field)
                if value is not None:
                    options.append(f"{word} = {_literal(value)}" + self._after(field))
        options += [f"MOVE {quote_string(name)} TO {quote_string(path)}" for name, path in self.moves]
        return options

    def _after(self, field: str) -> str:
        marked = field in ("stop_at_mark", "stop_before_mark")
        return f" AFTER {_literal(self.stop_after)}" if marked and self.stop_after is not None else ""


def _literal(value: object) -> str:
    if isinstance(value, int):
        return str(value)
    return quote_string(value.isoformat() if isinstance(value, datetime) else str(value))
