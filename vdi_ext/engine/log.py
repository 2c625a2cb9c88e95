"""The transaction log of a database of the stand-in: log sequence numbers, records, and what a log backup carries.

Records are of the stand-in's own kind and fill a sector each: one says that extents were changed, or that a checkpoint
was taken. The record with number n has one log sequence number, so "up to here" is one number for log, differential
bitmap, restore sequence and page headers alike. Around the records everything is as in a real log: virtual log files,
blocks of 512 bytes, the parity of each.

    sector   u8 parity; "vdi_ext log 1"; at 16: u64 number, u64 kind, u64 microseconds since 1970, u64 first extent,
             u64 number of extents; at 508: CRC-32 of what precedes it
"""

from __future__ import annotations

import struct
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..mtf import LogPart, Lsn, MtfError

SECTOR = 512
CHANGE, CHECKPOINT = 1, 2

_FIRST_FILE = 20  # sequence number of the first virtual log file
_FILE_BLOCKS = 2048
_FILE_SIZE = _FILE_BLOCKS * SECTOR
_HEADER_BLOCKS = 16  # of a virtual log file, before its records
_RECORDS = _FILE_BLOCKS - _HEADER_BLOCKS
_MAGIC = b"vdi_ext log 1"
_RECORD = struct.Struct("<5Q")
_EPOCH = datetime(1970, 1, 1)
FILE_HEADER = 8192  # bytes at the beginning of the log file


@dataclass(frozen=True)
class Record:
    """Something that happened to the database.

    Parameters
    ----------
    number : int
        From 1, without gaps.
    kind : int
        `CHANGE` or `CHECKPOINT`.
    time : datetime
    first, count : int
        Extents that were changed.
    """

    number: int
    kind: int
    time: datetime
    first: int = 0
    count: int = 0


def lsn_of(number: int) -> Lsn:
    """Log sequence number of a record: virtual log file, block, slot."""
    file, block = divmod(number - 1, _RECORDS)
    return _FIRST_FILE + file, _HEADER_BLOCKS + block, 1


def number_of(lsn: Lsn) -> int:
    """The inverse of `lsn_of`. Raises `ValueError` for what is no number of this log."""
    file, block, slot = lsn
    number = (file - _FIRST_FILE) * _RECORDS + block - _HEADER_BLOCKS + 1
    if number < 1 or lsn_of(number) != lsn:
        raise ValueError(f"{file}:{block}:{slot} is no log sequence number of the stand-in")
    return number


class TransactionLog:
    """Records that were not cut off yet.

    Attributes
    ----------
    next : int
        Number of the next record.
    """

    def __init__(self, following: int = 1) -> None:
        self.next = following
        self._records: deque[Record] = deque()

    def append(self, kind: int, time: datetime, first: int = 0, count: int = 0) -> Record:
        record = Record(self.next, kind, time, first, count)
        self._records.append(record)
        self.next += 1
        return record

    def truncate(self, before: int) -> None:
        """Forget the records below a number."""
        while self._records and self._records[0].number < before:
            self._records.popleft()

    def between(self, first: int, end: int) -> list[Record]:
        """The records from `first` up to, not including, `end`; all of them were kept."""
        return [record for record in self._records if first <= record.number < end]

    @property
    def size(self) -> int:
        """Bytes of the log file: whole virtual log files."""
        return FILE_HEADER + (lsn_of(self.next)[0] - _FIRST_FILE + 1) * _FILE_SIZE


def encode(records: Iterable[Record], end: int) -> tuple[LogPart, ...]:
    """What a log backup holds: a part for each virtual log file, and an empty one where there is no record.

    Parameters
    ----------
    records : iterable of Record
        In sequence.
    end : int
        Number of the record behind the last one.
    """
    files: dict[int, list[Record]] = {}
    for record in records:
        files.setdefault(lsn_of(record.number)[0], []).append(record)
    if not files:
        return (_part(lsn_of(end), []),)
    return tuple(_part(lsn_of(kept[0].number), kept) for kept in files.values())


def _part(lsn: Lsn, records: list[Record]) -> LogPart:
    file, block, _ = lsn
    parity = 0x80 if file & 1 else 0x40
    offset = FILE_HEADER + (file - _FIRST_FILE) * _FILE_SIZE
    start = offset + block * SECTOR
    data = b"".join(_sector(record, parity) for record in records)
    return LogPart(file, start, start + len(data), _FILE_SIZE, offset, parity, data)


def _sector(record: Record, parity: int) -> bytes:
    sector = bytearray(SECTOR)
    sector[0] = parity
    sector[1 : 1 + len(_MAGIC)] = _MAGIC
    micros = (record.time - _EPOCH) // timedelta(microseconds=1)
    _RECORD.pack_into(sector, 16, record.number, record.kind, micros, record.first, record.count)
    struct.pack_into("<I", sector, 508, zlib.crc32(sector[:508]))
    return bytes(sector)


def decode(sectors: bytes | memoryview) -> Iterator[Record]:
    """The records in sectors of a log backup. Raises `MtfError`."""
    for place in range(0, len(sectors), SECTOR):
        sector = bytes(sectors[place : place + SECTOR])
        if len(sector) != SECTOR or sector[1 : 1 + len(_MAGIC)] != _MAGIC:
            raise MtfError("the log is not one of a database of the stand-in")
        if zlib.crc32(sector[:508]) != struct.unpack_from("<I", sector, 508)[0]:
            raise MtfError("a log record is damaged")
        number, kind, micros, first, count = _RECORD.unpack_from(sector, 16)
        try:
            time = _EPOCH + timedelta(microseconds=micros)
        except OverflowError:
            raise MtfError("a log record has an impossible time") from None
        yield Record(number, kind, time, first, count)
