"""RESTORE HEADERONLY, FILELISTONLY, LABELONLY and VERIFYONLY: what is on media, and whether it is whole."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from ..mtf import PAGE_SIZE, Configuration, FamilyInfo, FileHeader, Label, Lsn, page_checksums
from ..mtf.configuration import COPY_ONLY_FLAG
from ..mtf.pages import CHECKSUM_FLAG, Pages, headers
from .creation import checked_moves
from .database import DatabaseError, PageDamage
from .families import Families
from .log import lsn_of
from .messages import message
from .msdb import VIRTUAL_DEVICE, RestoreRecord, lsn_number
from .outcome import Outcome
from .stripes import RestoreStripes
from .types import BIGINT, BIT, DATETIME, GUID, INT, LSN, SMALLINT, TINYINT, Column, SqlType, nvarchar

if TYPE_CHECKING:
    from .execution import Execution
    from .tsql import Statement

Row = tuple[object, ...]
_NONE = (0, 0, 0)
_SIZE = SqlType("numeric", precision=20)
_NAME = nvarchar(128)

HEADER_COLUMNS = tuple(Column(name, kind) for name, kind in (
    ("BackupName", _NAME), ("BackupDescription", nvarchar(255)), ("BackupType", SMALLINT),
    ("ExpirationDate", DATETIME), ("Compressed", BIT), ("Position", SMALLINT), ("DeviceType", TINYINT),
    ("UserName", _NAME), ("ServerName", _NAME), ("DatabaseName", _NAME), ("DatabaseVersion", INT),
    ("DatabaseCreationDate", DATETIME), ("BackupSize", _SIZE), ("FirstLSN", LSN), ("LastLSN", LSN),
    ("CheckpointLSN", LSN), ("DatabaseBackupLSN", LSN), ("BackupStartDate", DATETIME), ("BackupFinishDate", DATETIME),
    ("SortOrder", SMALLINT), ("CodePage", SMALLINT), ("UnicodeLocaleId", INT), ("UnicodeComparisonStyle", INT),
    ("CompatibilityLevel", TINYINT), ("SoftwareVendorId", INT), ("SoftwareVersionMajor", INT),
    ("SoftwareVersionMinor", INT), ("SoftwareVersionBuild", INT), ("MachineName", _NAME), ("Flags", INT),
    ("BindingID", GUID), ("RecoveryForkID", GUID), ("Collation", _NAME), ("FamilyGUID", GUID),
    ("HasBulkLoggedData", BIT), ("IsSnapshot", BIT), ("IsReadOnly", BIT), ("IsSingleUser", BIT),
    ("HasBackupChecksums", BIT), ("IsDamaged", BIT), ("BeginsLogChain", BIT), ("HasIncompleteMetaData", BIT),
    ("IsForceOffline", BIT), ("IsCopyOnly", BIT), ("FirstRecoveryForkID", GUID), ("ForkPointLSN", LSN),
    ("RecoveryModel", nvarchar(60)), ("DifferentialBaseLSN", LSN), ("DifferentialBaseGUID", GUID),
    ("BackupTypeDescription", nvarchar(60)), ("BackupSetGUID", GUID), ("CompressedBackupSize", BIGINT),
    ("Containment", TINYINT), ("KeyAlgorithm", nvarchar(32)), ("EncryptorThumbprint", SqlType("varbinary", 20)),
    ("EncryptorType", nvarchar(32)), ("LastValidRestoreTime", DATETIME), ("TimeZone", SMALLINT),
    ("CompressionAlgorithm", nvarchar(32)),
))  # fmt: skip
FILE_COLUMNS = tuple(Column(name, kind) for name, kind in (
    ("LogicalName", _NAME), ("PhysicalName", nvarchar(260)), ("Type", SqlType("char", 1)), ("FileGroupName", _NAME),
    ("Size", _SIZE), ("MaxSize", _SIZE), ("FileId", BIGINT), ("CreateLSN", LSN), ("DropLSN", LSN), ("UniqueId", GUID),
    ("ReadOnlyLSN", LSN), ("ReadWriteLSN", LSN), ("BackupSizeInBytes", BIGINT), ("SourceBlockSize", INT),
    ("FileGroupId", INT), ("LogGroupGUID", GUID), ("DifferentialBaseLSN", LSN), ("DifferentialBaseGUID", GUID),
    ("IsReadOnly", BIT), ("IsPresent", BIT), ("TDEThumbprint", SqlType("varbinary", 32)),
    ("SnapshotUrl", nvarchar(360)),
))  # fmt: skip
LABEL_COLUMNS = tuple(Column(name, kind) for name, kind in (
    ("MediaName", _NAME), ("MediaSetId", GUID), ("FamilyCount", INT), ("FamilySequenceNumber", INT),
    ("MediaFamilyId", GUID), ("MediaSequenceNumber", INT), ("MediaLabelPresent", TINYINT),
    ("MediaDescription", nvarchar(255)), ("SoftwareName", _NAME), ("SoftwareVendorId", INT), ("MediaDate", DATETIME),
    ("MirrorCount", INT), ("IsCompressed", BIT),
))  # fmt: skip

_RANGES = {
    "bit": (0, 1), "tinyint": (0, 255), "smallint": (-(2**15), 2**15 - 1), "int": (-(2**31), 2**31 - 1),
    "bigint": (-(2**63), 2**63 - 1),
}  # fmt: skip
_FIRST_YEAR = 1753  # of datetime

_TYPES = {"D": (1, "Database"), "L": (2, "Transaction Log"), "I": (5, "Database Differential")}


def look(execution: Execution) -> Outcome | None:
    """Execute one of the four. Returns None: none of them ends with messages of its own."""
    kind = execution.statement.kind
    if kind == "VERIFYONLY":
        _verify(execution)
    elif kind == "HEADERONLY":
        execution.show(HEADER_COLUMNS, fitted(HEADER_COLUMNS, _sets(execution)))
    elif kind == "FILELISTONLY":
        execution.show(FILE_COLUMNS, fitted(FILE_COLUMNS, _file_list(execution)))
    else:
        execution.show(LABEL_COLUMNS, fitted(LABEL_COLUMNS, _label(execution)))
    return None


# ---- the four


def _sets(execution: Execution) -> list[Row]:
    rows: list[Row] = []
    _read(execution, lambda info: False, lambda info: rows.append(header_row(info)), execution.statement.file)
    return rows


def _file_list(execution: Execution) -> list[Row]:
    rows: list[Row] = []

    def found(info: FamilyInfo) -> bool:
        assert info.configuration is not None
        rows.extend(file_row(file, info.configuration) for file in info.configuration.files)
        return True

    _read(execution, found, None, execution.statement.file or 1)
    return rows


def _label(execution: Execution) -> list[Row]:
    rows: list[Row] = []

    def found(info: FamilyInfo) -> bool:
        assert info.label is not None
        rows.append(label_row(info, info.label))
        return True

    _read(execution, found, None, 1)
    return rows


def _read(
    execution: Execution,
    on_start: Callable[[FamilyInfo], bool],
    on_end: Callable[[FamilyInfo], None] | None,
    position: int | None,
) -> None:
    """Read the one device that these statements take, until `on_start` says that it is enough."""
    statement, devices = execution.statement, execution.devices
    if len(statement.devices) > 1:
        raise DatabaseError(3205, 1)
    families = Families(statement)

    def start(number: int, info: FamilyInfo) -> None:
        families.check_label(number, info)
        _check_checksum(statement, info)
        if on_start(info):
            stripes.stop()

    stripes = RestoreStripes(1, devices.block_size, start, lambda pages: None, None, on_end, position, skims=True)
    devices.read(stripes)


def _verify(execution: Execution) -> None:
    """All of it is read; pages that carry a checksum are held against it."""
    statement, devices = execution.statement, execution.devices
    families = Families(statement)
    read: list[FamilyInfo] = []
    counted = 0

    def start(number: int, info: FamilyInfo) -> None:
        if families.admit(number, info):
            _check_checksum(statement, info)
            assert info.configuration is not None
            checked_moves(statement.moves, info.configuration)
            execution.explainer.database = info.database
            execution.expect(info.pages * PAGE_SIZE)

    def pages(data: Pages) -> None:
        nonlocal counted
        header = headers(data)
        # Extents are copied whole: what lies in unallocated pages of theirs is anything.
        real = (header["version"] == 1) & (header["type"] >= 1) & (header["type"] <= 20)
        real &= header["page_id"] % 8 == np.arange(counted, counted + len(data)) % 8
        real &= (header["flag_bits"] & CHECKSUM_FLAG) != 0
        wrong = real & (header["checksum"] != page_checksums(data))
        counted += len(data)
        if wrong.any():
            raise PageDamage(int(header["page_id"][np.argmax(wrong)]), "the page checksum does not match")

    position = statement.file or 1
    devices.read(RestoreStripes(
        len(statement.devices), devices.block_size, start, pages, None, read.append, position,
    ))  # fmt: skip
    info = read[0]
    assert info.configuration is not None
    if statement.load_history:
        execution.remember(RestoreRecord(
            info.database, "V", datetime.now(), uuid.UUID(bytes_le=info.set_guid), recovery=False,
        ))  # fmt: skip
    execution.tell(message(3262, position))


def _check_checksum(statement: Statement, info: FamilyInfo) -> None:
    if statement.checksum and not info.checksum:
        raise DatabaseError(3187)


# ---- rows; None where the stream does not say


def fitted(columns: tuple[Column, ...], rows: list[Row]) -> list[Row]:
    """Rows whose values are of their columns' types: a stream can say more than a type can hold. None, or cut off."""
    return [tuple(_fitted(column.type, value) for column, value in zip(columns, row, strict=True)) for row in rows]


def _fitted(kind: SqlType, value: object) -> object:
    if isinstance(value, str):
        return value[: kind.size]
    if isinstance(value, int):
        low, high = _RANGES[kind.name]
        return value if low <= value <= high else None
    if isinstance(value, Decimal):
        return value if abs(value) < 10**kind.precision else None
    if isinstance(value, datetime):
        return value if value.year >= _FIRST_YEAR else None
    return value


def header_row(info: FamilyInfo) -> Row:
    """RESTORE HEADERONLY's row of a set that was read to its end."""
    found, label = info.configuration, info.label
    assert found is not None and label is not None
    own = found.extra  # empty unless the stand-in wrote the backup
    number, description = _TYPES[found.kind]
    first_fork, fork_point = _forks(found)
    differential = found.kind == "I"
    model = own.get("recovery_model")
    major, minor, build = found.version

    def flag(bit: int) -> int:
        return int(bool(found.flags & bit))

    return (
        info.name or None, info.description or None, number, _date(own.get("expires")), int(info.compressed),
        info.number, VIRTUAL_DEVICE, info.user or None, found.server or None, found.database, found.database_version,
        found.created, Decimal(found.size), _lsn(found.first_lsn), _lsn(found.last_lsn), _lsn(found.checkpoint_lsn),
        Decimal(lsn_number(found.database_lsn)), found.started, found.finished, found.sort_order, None, found.locale,
        found.comparison_style, found.compatibility, label.vendor, major, minor, build, info.machine or None,
        found.flags, _guid(found.binding_guid), _guid(found.recovery_fork), None, _guid(found.family_guid),
        flag(1), flag(2), flag(4), flag(8), flag(16), flag(32), int(bool(own.get("begins_chain"))) if own else None,
        flag(128), flag(256), flag(COPY_ONLY_FLAG), first_fork, fork_point,
        str(model).replace("_", "-") if model else None, _lsn(found.base_lsn) if differential else None,
        _guid(found.base_guid) if differential else None, description, _guid(info.set_guid),
        None if info.compressed else found.size, 0 if own or major < 11 else None, None, None, None, found.finished,
        None, None,
    )  # fmt: skip


def file_row(file: FileHeader, found: Configuration) -> Row:
    """RESTORE FILELISTONLY's row of a file."""
    is_log = file.group_id == 0
    differential = found.kind == "I" and not is_log
    return (
        file.name, file.path, "L" if is_log else "D", file.group or None, Decimal(file.size), Decimal(file.max_size),
        file.file_id, Decimal(lsn_number(file.created_lsn)), None, _guid(file.guid), None, None,
        file.backup_size, file.sector_size, file.group_id, None, _lsn(file.base_lsn) if differential else None,
        _guid(file.base_guid) if differential else None, 0, 1, None, None,
    )  # fmt: skip


def label_row(info: FamilyInfo, label: Label) -> Row:
    """RESTORE LABELONLY's row."""
    family = uuid.UUID(fields=(label.family_id, 0, 0, 0, 0, 0))
    return (
        label.name or None, _guid(info.media_guid), info.families, info.family, family, label.sequence, 0,
        label.description or None, label.software, label.vendor, label.written, 1, int(info.compressed),
    )  # fmt: skip


def _forks(found: Configuration) -> tuple[uuid.UUID | None, Decimal | None]:
    """FirstRecoveryForkID and ForkPointLSN."""
    if found.kind != "L":
        return _guid(found.recovery_fork), None
    forks = found.extra.get("forks")
    try:
        first, last = forks[0], forks[-1]  # type: ignore[index]
        guid = _guid(bytes.fromhex(first[0]))
        return guid, Decimal(lsn_number(lsn_of(int(last[1])))) if len(forks) > 1 else None  # type: ignore[arg-type]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        return None, None


def _lsn(lsn: Lsn) -> Decimal | None:
    return None if lsn == _NONE else Decimal(lsn_number(lsn))


def _guid(raw: bytes) -> uuid.UUID | None:
    return uuid.UUID(bytes_le=raw) if any(raw) and len(raw) == 16 else None


def _date(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None) if isinstance(value, str) else None
    except ValueError:
        return None
