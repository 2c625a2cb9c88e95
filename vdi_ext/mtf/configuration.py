"""The configuration that a backup set begins and ends with: SCIN, SFGI and SFIN records in an MQCI stream.

Places of fields are those measured in backups of SQL Server 2005 to 2022. What no public knowledge has a place for
(the recovery model, the recovery path, what kind of database it was) the stand-in writes as JSON into a
record of its own, VDIX, which others skip as they skip every record that they do not know.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from .blocks import (
    DATABASE_VERSION,
    SERVER_VERSION,
    BackupSet,
    DatabaseFile,
    Lsn,
    decode_date,
    encode_date,
    encode_text,
)

# Flags of SCIN: those that RESTORE HEADERONLY is documented to show, and three that it shows besides.
SNAPSHOT_FLAG, CHECKSUM_FLAG, TAIL_FLAG, NORECOVERY_FLAG = 0x2, 0x10, 0x40, 0x100
ALWAYS_FLAG, COPY_ONLY_FLAG, DIFFERENTIAL_FLAG = 0x200, 0x400, 0x800
SCIN_SIZE = 364
_UNLIMITED = 0x1FFFFFFFE000  # bytes that a data file may grow to; a log file: 2 TiB
_UNLIMITED_LOG = 2 << 40


@dataclass(frozen=True)
class FileHeader:
    """One file of the database as the backup describes it.

    Parameters
    ----------
    file_id, group_id : int
        Group 0 is the log.
    name, path, group : str
    pages : int
        In this pass, all families together; 0 for a log.
    size, max_size, backup_size : int
        Bytes.
    sector_size : int
        Bytes, of the device that the file is on.
    created_lsn, base_lsn : tuple of int
    base_guid, guid : bytes
        Of the differential base and of the file.
    """

    file_id: int
    group_id: int
    name: str
    path: str
    group: str
    pages: int
    size: int
    max_size: int
    backup_size: int
    sector_size: int
    created_lsn: Lsn
    base_lsn: Lsn
    base_guid: bytes
    guid: bytes


@dataclass(frozen=True)
class Configuration:
    """What SCIN and the records behind it say; names as in `BackupSet`."""

    kind: str
    flags: int
    database: str
    server: str
    version: tuple[int, int, int]
    database_version: int
    compatibility: int
    sort_order: int
    locale: int
    comparison_style: int
    first_lsn: Lsn
    last_lsn: Lsn
    checkpoint_lsn: Lsn
    database_lsn: Lsn
    base_lsn: Lsn
    base_guid: bytes
    created: datetime | None
    started: datetime | None
    finished: datetime | None
    size: int
    recovery_fork: bytes
    family_guid: bytes
    binding_guid: bytes
    files: tuple[FileHeader, ...]
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def checksum(self) -> bool:
        return bool(self.flags & CHECKSUM_FLAG)

    @property
    def snapshot(self) -> bool:
        return bool(self.flags & SNAPSHOT_FLAG)

    @property
    def copy_only(self) -> bool:
        return bool(self.flags & COPY_ONLY_FLAG)


# ---- writing


def configuration(backup: BackupSet, size: int, finished: datetime | None = None) -> bytes:
    """Content of an MQCI stream: SCIN, SFGI, one SFIN per file, and VDIX where there is anything in it.

    Parameters
    ----------
    size : int
        Bytes of the backup: an estimate at its start, the real size at its end.
    finished : datetime, optional
        In the copy at the end.
    """
    scin = bytearray(SCIN_SIZE)
    scin[0:4] = b"SCIN"
    flags = ALWAYS_FLAG
    for flag, on in (
        (SNAPSHOT_FLAG, backup.snapshot), (CHECKSUM_FLAG, backup.checksum), (TAIL_FLAG, backup.tail),
        (NORECOVERY_FLAG, backup.norecovery), (COPY_ONLY_FLAG, backup.copy_only),
        (DIFFERENTIAL_FLAG, backup.kind == "I"),
    ):  # fmt: skip
        flags |= flag if on else 0
    struct.pack_into("<3I", scin, 8, flags, 1, 1)
    major, minor, build = SERVER_VERSION
    struct.pack_into("<HBB", scin, 24, build, minor, major)
    checkpoint = backup.checkpoint_lsn or backup.first_lsn
    for at, lsn in (
        (32, backup.first_lsn), (42, backup.last_lsn), (52, checkpoint), (62, backup.database_lsn),
        (144, backup.last_lsn), (260, backup.base_lsn),
    ):  # fmt: skip
        struct.pack_into("<IIH", scin, at, *lsn)
    scin[72:87] = encode_date(backup.created) + encode_date(backup.started) + encode_date(finished)
    scin[87:88] = backup.kind.encode("ascii")
    scin[88], scin[91] = 0x34, 100
    struct.pack_into("<HQ", scin, 94, DATABASE_VERSION, size)
    struct.pack_into("<II", scin, 116, 1033, 0x30001)
    for at, guid in (
        (124, backup.binding_guid), (156, backup.recovery_fork), (200, backup.database_guid),
        (224, backup.family_guid), (272, backup.base_guid),
    ):  # fmt: skip
        scin[at : at + 16] = guid
    struct.pack_into("<Q", scin, 340, size)
    _append_texts(scin, ((104, backup.database), (108, backup.server)))
    struct.pack_into("<I", scin, 4, len(scin))

    sfgi = bytearray(48)
    sfgi[0:4] = b"SFGI"
    struct.pack_into("<II", sfgi, 8, 16, 1)
    _append_texts(sfgi, ((16, "PRIMARY"),))
    struct.pack_into("<I", sfgi, 20, 1)
    struct.pack_into("<I", sfgi, 4, len(sfgi))

    records = bytes(scin + sfgi) + b"".join(_file_record(backup, file) for file in backup.files)
    if backup.extra:
        text = json.dumps(dict(backup.extra), sort_keys=True).encode()
        records += b"VDIX" + struct.pack("<I", 8 + len(text)) + text
    return records


def _file_record(backup: BackupSet, file: DatabaseFile) -> bytes:
    sfin = bytearray(1024)
    sfin[0:4] = b"SFIN"
    struct.pack_into("<I", sfin, 8, 0x0C if file.is_log else 0x84)
    struct.pack_into("<6I", sfin, 16, 8192, file.file_id, file.pages, file.file_id, 512, not file.is_log)
    struct.pack_into("<Q", sfin, 40, file.size)
    struct.pack_into("<Q", sfin, 86, _UNLIMITED_LOG if file.is_log else _UNLIMITED)
    if not file.is_log:
        struct.pack_into("<IIH", sfin, 158, *backup.base_lsn)
        sfin[170:186] = backup.base_guid
    sfin[186:202] = file.guid
    size = sum(len(part.data) for part in backup.log) if file.is_log else file.pages * 8192
    struct.pack_into("<Q", sfin, 250, size)
    _append_texts(sfin, ((48, file.name), (52, file.path)))
    struct.pack_into("<I", sfin, 4, len(sfin))
    return bytes(sfin)


def _append_texts(record: bytearray, texts: tuple[tuple[int, str], ...]) -> None:
    for at, text in texts:
        raw = encode_text(text)
        struct.pack_into("<HH", record, at, len(raw), len(record))
        record += raw


# ---- reading: everything in it is hostile until checked

Complain = Callable[[bool, str], None]  # raises with the text where the condition is false


def records(data: bytes, require: Complain) -> Iterator[tuple[bytes, bytes]]:
    """The records of an MQCI stream: kind, and all of it; SCIN first."""
    require(len(data) >= SCIN_SIZE and data[:4] == b"SCIN", "SCIN is missing")
    place = 0
    while place < len(data):
        require(place + 8 <= len(data), "the configuration ends inside a record")
        length, = struct.unpack_from("<I", data, place + 4)
        least = SCIN_SIZE if place == 0 else 8
        require(least <= length <= len(data) - place, "a configuration record has an impossible length")
        yield data[place : place + 4], data[place : place + length]
        place += length


def parse(data: bytes, require: Complain) -> Configuration:
    """Take an MQCI stream apart.

    Parameters
    ----------
    data : bytes
    require : callable
        Called with conditions and what is wrong where they do not hold; raises then.
    """
    def text(record: bytes, at: int) -> str:
        size, offset = struct.unpack_from("<HH", record, at)
        require(offset + size <= len(record), "an address points out of its record")
        raw = record[offset : offset + size]
        try:
            return raw.decode("utf-16-le")
        except UnicodeDecodeError:
            require(False, "a name in the configuration is no text")
            raise

    def lsn(record: bytes, at: int) -> Lsn:
        return struct.unpack_from("<IIH", record, at)

    scin = b""
    groups: dict[int, str] = {}
    files: list[FileHeader] = []
    extra: Mapping[str, object] = {}
    for kind, record in records(data, require):
        if kind == b"SCIN":
            require(not scin, "SCIN comes twice")
            scin = record
        elif kind == b"SFGI":
            require(len(record) >= 24, "SFGI is too short")
            groups[struct.unpack_from("<I", record, 20)[0]] = text(record, 16)
        elif kind == b"SFIN":
            require(len(record) >= 56, "SFIN is too short")
            whole = record + bytes(max(0, 258 - len(record)))
            file_id, pages, _, sector, group = struct.unpack_from("<5I", record, 20)
            size, = struct.unpack_from("<Q", record, 40)
            files.append(FileHeader(
                file_id, group, text(record, 48), text(record, 52), groups.get(group, ""), pages if group else 0, size,
                struct.unpack_from("<Q", whole, 86)[0], struct.unpack_from("<Q", whole, 250)[0], sector,
                lsn(whole, 138), lsn(whole, 158), whole[170:186], whole[186:202],
            ))  # fmt: skip
        elif kind == b"VDIX":
            extra = _own(record[8:], require)
    build, minor, major = struct.unpack_from("<HBB", scin, 24)
    locale, style = struct.unpack_from("<II", scin, 116)
    kind_letter = scin[87:88].decode("latin-1")
    require(kind_letter in "DIL", "a backup of an unknown kind")
    dates = [decode_date(scin[at : at + 5]) for at in (72, 77, 82)]
    flags, = struct.unpack_from("<I", scin, 8)
    return Configuration(
        kind=kind_letter, flags=flags,
        database=text(scin, 104), server=text(scin, 108), version=(major, minor, build),
        database_version=struct.unpack_from("<H", scin, 94)[0], compatibility=scin[91], sort_order=scin[88],
        locale=locale, comparison_style=style, first_lsn=lsn(scin, 32), last_lsn=lsn(scin, 42),
        checkpoint_lsn=lsn(scin, 52), database_lsn=lsn(scin, 62), base_lsn=lsn(scin, 260), base_guid=scin[272:288],
        created=dates[0], started=dates[1], finished=dates[2], size=struct.unpack_from("<Q", scin, 96)[0],
        recovery_fork=scin[156:172], family_guid=scin[224:240], binding_guid=scin[124:140], files=tuple(files),
        extra=extra,
    )  # fmt: skip


def _own(text: bytes, require: Complain) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    require(isinstance(value, dict), "VDIX is no JSON object")
    return value


# Fields that may be others in the copy at the end: dates and sizes that are known then, and what the next differential
# will build on.
_LATE = {b"SCIN": ((82, 87), (96, 104), (340, 348)), b"SFIN": ((24, 28), (158, 186), (250, 258), (262, 270))}


def lasting(data: bytes, require: Complain) -> bytes:
    """An MQCI stream without what its copy at the end may have otherwise."""
    kept = []
    for kind, record in records(data, require):
        part = bytearray(record)
        for start, end in _LATE.get(kind, ()):
            part[start:end] = bytes(len(part[start:end]))
        kept.append(bytes(part))
    return b"".join(kept)
