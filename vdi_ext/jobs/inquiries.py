"""What is asked of a server around a backup: its databases, and what msdb remembers."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from .server import Session
from .sql_text import quoted_text
from .statements import SQLError

_LSN_BASE = (10**5, 10**10)


@dataclass(frozen=True)
class DatabaseState:
    """A database of the server, as far as it matters for a backup.

    Attributes
    ----------
    name : str
    state : str
        ``"ONLINE"``, ``"RESTORING"``, ``"OFFLINE"``, ...
    recovery_model : str
        ``"FULL"``, ``"SIMPLE"`` or ``"BULK_LOGGED"``.
    is_system : bool
        master, model, msdb or tempdb.
    preferred : bool
        Backups are to be taken of this replica.
    is_snapshot : bool
        A database snapshot, which can not be backed up.
    """

    name: str
    state: str
    recovery_model: str
    is_system: bool
    preferred: bool = True
    is_snapshot: bool = False


@dataclass(frozen=True)
class BackupRow:
    """What msdb says of one backup.

    LSNs are numbers as in T-SQL, times are the server's local time in ISO 8601.
    """

    set_guid: str
    database: str
    type: str
    first_lsn: int | None
    last_lsn: int | None
    checkpoint_lsn: int | None
    database_lsn: int | None
    base_lsn: int | None
    base_guid: str | None
    first_fork: str | None
    last_fork: str | None
    fork_lsn: int | None
    copy_only: bool
    started: str | None
    finished: str | None

    def to_dict(self) -> dict:
        return asdict(self)


def databases(session: Session) -> list[DatabaseState]:
    """All databases of the server, in the order of their numbers.

    Raises
    ------
    SQLError
    """
    rows = session.rows(
        "SELECT name, state_desc, recovery_model_desc, database_id, source_database_id, replica_id "
        "FROM sys.databases ORDER BY database_id"
    )
    found = []
    for name, state, model, number, source, replica in rows:
        preferred = True
        if replica is not None:  # in an availability group
            answer = session.rows(f"SELECT sys.fn_hadr_backup_is_preferred_replica({quoted_text(name)})")
            preferred = bool(answer[0][0])
        found.append(DatabaseState(name, str(state), str(model), int(number) <= 4, preferred, source is not None))
    return found


def server_name(session: Session) -> str:
    """As the server calls itself, with its instance."""
    return str(session.rows("SELECT @@SERVERNAME")[0][0])


def expected_size(session: Session, database: str) -> int | None:
    """Bytes of the last full backup of a database; None where msdb knows of none."""
    rows = session.rows(
        "SELECT TOP (1) backup_size, compressed_backup_size FROM msdb.dbo.backupset "
        f"WHERE database_name = {quoted_text(database)} AND type = 'D' ORDER BY backup_set_id DESC"
    )
    if not rows:
        return None
    sizes = [int(size) for size in rows[0] if size is not None]
    return min(sizes) if sizes else None


def database_files(session: Session, database: str) -> list[str]:
    """Paths of the files of a database, as its server names them; none where it does not know the database.

    A file that is named otherwise than by an absolute path is none (the stand-in's synthetic pages).

    Raises
    ------
    SQLError
    """
    rows = session.rows(
        f"SELECT physical_name FROM sys.master_files WHERE database_id = DB_ID({quoted_text(database)}) "
        "ORDER BY file_id"
    )
    return [str(path) for path, in rows if re.match(r"/|\\\\|[A-Za-z]:\\", str(path))]


_BACKUP_ROW = (
    "SELECT b.backup_set_uuid, b.database_name, b.type, b.first_lsn, b.last_lsn, b.checkpoint_lsn, "
    "b.database_backup_lsn, b.differential_base_lsn, b.differential_base_guid, b.first_recovery_fork_guid, "
    "b.last_recovery_fork_guid, b.fork_point_lsn, b.is_copy_only, b.backup_start_date, b.backup_finish_date "
    "FROM msdb.dbo.backupset AS b "
)


def backup_row(session: Session, set_guid: str) -> BackupRow | None:
    """What msdb says of a backup; None: it does not list it, so that backup has not succeeded.

    Raises
    ------
    SQLError
        It can not be asked.
    """
    return _row(session, f"WHERE b.backup_set_uuid = {quoted_text(str(UUID(set_guid)))}")


def backup_row_of_device(session: Session, device: str) -> BackupRow | None:
    """The same, of the backup to the virtual device of this name, for streams that do not tell their GUID: compressed
    and encrypted ones.
    """
    return _row(session, "JOIN msdb.dbo.backupmediafamily AS f ON f.media_set_id = b.media_set_id "
                         f"WHERE f.physical_device_name = {quoted_text(device)}")  # fmt: skip


def _row(session: Session, where: str) -> BackupRow | None:
    rows = session.rows(_BACKUP_ROW + where)
    if not rows:
        return None
    guid, name, kind, *rest = rows[0]
    first, last, checkpoint, base, differential, base_guid, *rest = rest
    fork, last_fork, fork_lsn, copy_only, started, finished = rest
    return BackupRow(
        _guid(guid) or "", str(name), str(kind).strip(), _number(first), _number(last), _number(checkpoint),
        _number(base), _number(differential), _guid(base_guid), _guid(fork), _guid(last_fork),
        _number(fork_lsn), bool(copy_only), _time(started), _time(finished),
    )  # fmt: skip


def lsn_number(lsn: tuple[int, int, int]) -> int:
    """The number by which T-SQL names a log sequence number."""
    file, block, slot = lsn
    return (file * _LSN_BASE[1] + block) * _LSN_BASE[0] + slot


def _number(value: Any) -> int | None:
    return None if value is None else int(value)


def _time(value: Any) -> str | None:
    return None if value is None else value.isoformat() if hasattr(value, "isoformat") else str(value)


def _guid(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return str(UUID(bytes_le=value))
    if not re.fullmatch(r"\{?[0-9A-Fa-f-]{32,36}\}?", str(value)):
        raise SQLError([f"{str(value)!r} is no GUID"])
    return str(UUID(str(value)))
