"""What the server remembers of backups and restores: the tables of msdb."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from ..mtf import Lsn

FILE_NAME = "history.jsonl"
VIRTUAL_DEVICE = 7  # device_type


def lsn_number(lsn: Lsn) -> int:
    """The numeric(25,0) that stands for an LSN in T-SQL."""
    file, block, slot = lsn
    return (file * 10**10 + block) * 10**5 + slot


def lsn_of(number: int) -> Lsn:
    """The LSN that a numeric(25,0) stands for."""
    rest, slot = divmod(number, 10**5)
    file, block = divmod(rest, 10**10)
    return file, block, slot


@dataclass(frozen=True)
class FileRecord:
    """A file of a database in a backup.

    Parameters
    ----------
    number : int
        File id.
    name, path : str
        Logical and physical.
    type : str
        ``"D"`` data or ``"L"`` log.
    size, backup_size : int
        Bytes of the file and of what the backup holds of it.
    """

    number: int
    name: str
    path: str
    type: str = "D"
    size: int = 0
    backup_size: int = 0


@dataclass(frozen=True)
class BackupRecord:
    """A backup that succeeded.

    Parameters
    ----------
    database : str
    type : str
        ``"D"`` full, ``"I"`` differential or ``"L"`` log.
    devices : tuple of str
        Names of the virtual devices, in the order of the media families.
    started, finished : datetime
        Local time.
    set_guid, media_guid : UUID
        Of backup set and media set, as in the stream.
    size : int
        Bytes of the backup.
    first_lsn, last_lsn, checkpoint_lsn, database_lsn : Lsn or None
        `database_lsn` is the checkpoint of the full backup that this one builds on (DatabaseBackupLSN).
    differential_base_lsn : Lsn or None
    differential_base_guid : UUID or None
    first_fork, last_fork, family_guid : UUID or None
        Recovery forks at the beginning and the end; the database's family.
    fork_lsn : Lsn or None
        Where the forks differ.
    position : int
        Of the backup set on the medium, from 1.
    recovery_model : str
        ``"SIMPLE"``, ``"FULL"`` or ``"BULK-LOGGED"``.
    user, server_name, machine_name : str
    expires : datetime or None
    files : tuple of FileRecord
    """

    database: str
    type: str
    devices: tuple[str, ...]
    started: datetime
    finished: datetime
    set_guid: UUID
    media_guid: UUID
    size: int
    first_lsn: Lsn | None = None
    last_lsn: Lsn | None = None
    checkpoint_lsn: Lsn | None = None
    database_lsn: Lsn | None = None
    differential_base_lsn: Lsn | None = None
    differential_base_guid: UUID | None = None
    first_fork: UUID | None = None
    last_fork: UUID | None = None
    fork_lsn: Lsn | None = None
    family_guid: UUID | None = None
    is_copy_only: bool = False
    is_snapshot: bool = False
    is_damaged: bool = False
    has_checksums: bool = False
    begins_log_chain: bool = False
    has_incomplete_metadata: bool = False
    is_tail: bool = False
    position: int = 1
    recovery_model: str = "SIMPLE"
    name: str | None = None
    description: str | None = None
    media_name: str | None = None
    media_description: str | None = None
    user: str = ""
    server_name: str = ""
    machine_name: str = ""
    database_created: datetime | None = None
    database_version: int = 0
    block_size: int = 512
    expires: datetime | None = None
    files: tuple[FileRecord, ...] = ()


@dataclass(frozen=True)
class RestoreRecord:
    """A restore that succeeded.

    Parameters
    ----------
    database : str
        Name that it was restored to.
    type : str
        ``"D"`` database, ``"I"`` differential, ``"L"`` log or ``"V"`` verified only.
    finished : datetime
        Local time.
    set_guid : UUID
        Of the backup set.
    replace, recovery : bool
    user : str
    stop_at : datetime or None
    files : tuple of FileRecord
    """

    database: str
    type: str
    finished: datetime
    set_guid: UUID
    replace: bool = False
    recovery: bool = True
    user: str = ""
    stop_at: datetime | None = None
    files: tuple[FileRecord, ...] = ()


Record = TypeVar("Record", BackupRecord, RestoreRecord)


class History:
    """Backups and restores, in their order.

    Parameters
    ----------
    folder : path, optional
        Existing directory to keep them in, as lines of JSON in ``history.jsonl``; in memory only by default.

    Raises
    ------
    ValueError
        A line of the file is no record.

    Notes
    -----
    Any thread may record and read. A line is durable before `record` returns; one that was cut off by a crash at the
    end of the file is dropped.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._lock = threading.Lock()
        self._backups: list[BackupRecord] = []
        self._restores: list[RestoreRecord] = []
        self._path = Path(folder) / FILE_NAME if folder is not None else None
        if self._path is not None and self._path.exists():
            self._load(self._path)

    @property
    def backups(self) -> tuple[BackupRecord, ...]:
        with self._lock:
            return tuple(self._backups)

    @property
    def restores(self) -> tuple[RestoreRecord, ...]:
        with self._lock:
            return tuple(self._restores)

    def record(self, record: BackupRecord | RestoreRecord) -> None:
        """Remember a backup or a restore. Raises `OSError` where it cannot be kept."""
        with self._lock:
            if self._path is not None:
                self._append(self._path, record)
            if isinstance(record, BackupRecord):
                self._backups.append(record)
            else:
                self._restores.append(record)

    # ---- the file

    def _append(self, path: Path, record: BackupRecord | RestoreRecord) -> None:
        kind = "backup" if isinstance(record, BackupRecord) else "restore"
        line = json.dumps({kind: asdict(record)}, default=_plain).encode() + b"\n"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(f"{path}: a record was not written whole")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _load(self, path: Path) -> None:
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):  # a crash cut the last record off
            os.truncate(path, whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                ((kind, content),) = json.loads(line).items()
                if kind == "backup":
                    self._backups.append(_record(BackupRecord, content))
                else:
                    self._restores.append(_record({"restore": RestoreRecord}[kind], content))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{path}: line {number} is no record: {error}") from error


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


_READERS: dict[str, Callable] = {"datetime": datetime.fromisoformat, "UUID": UUID, "Lsn": lambda value: _lsn(*value)}


def _lsn(file: int, block: int, slot: int) -> Lsn:
    return int(file), int(block), int(slot)


def _record(kind: type[Record], content: dict) -> Record:
    """A record from its JSON."""
    types = {field.name: str(field.type).removesuffix(" | None") for field in fields(kind)}
    values = {}
    for name, value in content.items():
        if name == "files":
            value = tuple(FileRecord(**file) for file in value)
        elif name == "devices":
            value = tuple(map(str, value))
        elif value is not None and types[name] in _READERS:
            value = _READERS[types[name]](value)
        values[name] = value
    return kind(**values)
