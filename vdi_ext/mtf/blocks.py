"""Descriptor blocks, stream headers and configuration records, as SQL Server writes them.

Layouts that are not Microsoft Tape Format's own are those of SQL Server 2008 R2 (10.50).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from .checksums import header_checksum

FORMAT_BLOCK = 1024  # format logical block: descriptor blocks of a set lie on this grid
HEADER_SIZE = 52
STREAM_HEADER_SIZE = 22
LONGEST_FILEMARK = 32768
VENDOR = 0x1200
SERVER_VERSION = (10, 50, 0)
DATABASE_VERSION = 661  # of SQL Server 2008 R2
SOFTWARE = "vdi_ext"

# Media attributes of a stream.
CONTINUE, VARIABLE, LAST = 0x1, 0x2, 0x4
ALIGN = 0x80  # on APAD
CSUM_FOLLOWS = 0x100

CONTINUATION = 0x1  # attribute of a block that is repeated on the next volume

_HEADER = struct.Struct("<4sIHBBQQHH4sI4sHHBBH")
_STREAM = struct.Struct("<4sHHQHHH")

Lsn = tuple[int, int, int]


@dataclass(frozen=True)
class DatabaseFile:
    """One file of the database as the configuration names it.

    Parameters
    ----------
    file_id : int
        1 for the first data file, 2 for the log.
    name, path : str
        Logical name and place.
    size : int
        Bytes.
    pages : int
        Pages of it in the backup, all media families together; 0 for a log.
    is_log : bool
    """

    file_id: int
    name: str
    path: str
    size: int
    pages: int = 0
    is_log: bool = False
    guid: bytes = bytes(16)


@dataclass(frozen=True)
class LogPart:
    """What a backup holds of one virtual log file.

    Parameters
    ----------
    sequence : int
        Of the virtual log file.
    start, end : int
        Bytes from the beginning of the log file; `end` is behind the last one.
    size, offset : int
        Of the virtual log file, bytes.
    parity : int
        The two highest bits of the first byte of each 512-byte sector: 0x40 or 0x80.
    data : bytes
        The sectors; empty in all families but one.
    """

    sequence: int
    start: int
    end: int
    size: int
    offset: int
    parity: int
    data: bytes = b""


@dataclass(frozen=True)
class MediaSet:
    """The stripes of one backup.

    Parameters
    ----------
    guid : bytes
        16 bytes, the same in every family.
    families : int
    block_size : int
        Bytes of a physical block: filemarks and data begin on it.
    family_id : int
        MTF's 32-bit number; any.
    name, description : str
    soft_filemarks : int, optional
        Bytes of a filemark as the label gives it, where it is not the block size: 0 on devices that keep filemarks
        themselves (section 4.1, `soft_file_mark_block_size`).
    """

    guid: bytes
    families: int
    block_size: int = 512
    family_id: int = 0
    name: str = ""
    description: str = ""
    soft_filemarks: int | None = None


@dataclass(frozen=True)
class BackupSet:
    """What one BACKUP wrote: the same in every family.

    Parameters
    ----------
    guid : bytes
        16 bytes.
    database, server, machine, user : str
    files : tuple of DatabaseFile
    created, started : datetime
        Of the database, of the backup.
    checksum : bool
        WITH CHECKSUM: a backup checksum follows the data.
    snapshot : bool
        WITH SNAPSHOT: the files themselves are elsewhere.
    copy_only, tail, norecovery : bool
        COPY_ONLY; a tail-log backup; one that left the database restoring.
    recovery_fork : bytes
        16 bytes.
    first_lsn, last_lsn : tuple of int
        VLF sequence, block, slot.
    kind : str
        ``"D"`` (database), ``"I"`` (differential) or ``"L"`` (log).
    checkpoint_lsn : tuple of int, optional
        `first_lsn` where not given.
    database_lsn : tuple of int
        Checkpoint of the last full backup.
    database_guid : bytes
        16 bytes: the last full backup.
    base_lsn, base_guid : tuple of int, bytes
        Of a differential: what it builds on.
    family_guid, binding_guid : bytes
        16 bytes each: of the database when it was created, and since it was last restored.
    name, description : str
    number : int
        Position on the medium, from 1.
    log : tuple of LogPart
    extra : mapping
        What no public knowledge has a place for; goes as JSON into a record of its own, VDIX.
    """

    guid: bytes
    database: str
    server: str
    machine: str
    user: str
    files: tuple[DatabaseFile, ...]
    created: datetime
    started: datetime
    checksum: bool = False
    recovery_fork: bytes = bytes(16)
    first_lsn: Lsn = (1, 1, 1)
    last_lsn: Lsn = (1, 2, 1)
    kind: str = "D"
    checkpoint_lsn: Lsn | None = None
    database_lsn: Lsn = (0, 0, 0)
    database_guid: bytes = bytes(16)
    base_lsn: Lsn = (0, 0, 0)
    base_guid: bytes = bytes(16)
    family_guid: bytes = bytes(16)
    binding_guid: bytes = bytes(16)
    name: str = ""
    description: str = ""
    number: int = 1
    log: tuple[LogPart, ...] = ()
    extra: Mapping[str, object] = field(default_factory=dict)
    snapshot: bool = False
    copy_only: bool = False
    tail: bool = False
    norecovery: bool = False

    @property
    def pages(self) -> int:
        """Pages in all families together, fill pages not counted."""
        return sum(file.pages for file in self.files)

    @property
    def size(self) -> int:
        """Bytes of pages and log in all families together."""
        return self.pages * 8192 + sum(len(part.data) for part in self.log)


def encode_date(date: datetime | None) -> bytes:
    """Five bytes: year 14 bits, month 4, day 5, hour 5, minute 6, second 6; zeros for none."""
    if date is None:
        return bytes(5)
    value = 0
    for part, bits in (
        (date.year, 14), (date.month, 4), (date.day, 5), (date.hour, 5), (date.minute, 6), (date.second, 6),
    ):  # fmt: skip
        value = value << bits | part
    return value.to_bytes(5, "big")


def decode_date(raw: bytes) -> datetime | None:
    """The inverse of `encode_date`; None also for what is no date."""
    value = int.from_bytes(raw, "big")
    parts = []
    for bits in (6, 6, 5, 5, 4, 14):
        parts.append(value & (1 << bits) - 1)
        value >>= bits
    second, minute, hour, day, month, year = parts
    try:
        return datetime(year, month, day, hour, minute, second)
    except ValueError:
        return None


def encode_text(text: str) -> bytes:
    return text.encode("utf-16-le")


def padding(length: int) -> int:
    """Bytes up to the next multiple of 4."""
    return -length % 4


def descriptor(
    kind: bytes,
    body: bytes,
    *,
    attributes: int = 0,
    address: int = 0,
    control: int = 0,
    os_data: bytes = b"",
    texts: tuple[tuple[int, str], ...] = (),
) -> bytes:
    """Make a descriptor block up to its first stream.

    Parameters
    ----------
    kind : bytes
        Four letters.
    body : bytes
        What follows the common header. Texts and OS data are appended to it.
    attributes, address, control : int
        Of the common header: attributes, format logical address, control block id.
    os_data : bytes
    texts : tuple of (int, str)
        Offset of an MTF address in the block, and the text that it shall name.
    """
    block = bytearray(HEADER_SIZE) + body
    block += bytes(padding(len(block)))
    os_address = b"\0\0\0\0"
    if os_data:
        os_address = struct.pack("<HH", len(os_data), len(block))
        block += os_data
    for at, text in texts:
        raw = encode_text(text)
        if raw:
            struct.pack_into("<HH", block, at, len(raw), len(block))
            block += raw
    block += bytes(padding(len(block)))
    string_type = 2 if any(text for _, text in texts) or kind in (b"MSCI", b"MSLS") else 0
    return bytes(finish_header(block, kind, attributes, len(block), address, control, os_address, string_type))


def finish_header(
    block: bytearray,
    kind: bytes,
    attributes: int,
    first: int,
    address: int = 0,
    control: int = 0,
    os_address: bytes = b"\0\0\0\0",
    string_type: int = 0,
) -> bytearray:
    """Write the common header with its checksum over the first 52 bytes of `block`."""
    _HEADER.pack_into(
        block, 0, kind, attributes, first, 14, 1, 0, address, 0, 0, b"\0\0\0\0", control, b"\0\0\0\0", 0, 0,
        string_type, 0, 0,
    )  # fmt: skip
    block[44:48] = os_address
    struct.pack_into("<H", block, 50, header_checksum(block[:50]))
    return block


def stream_header(kind: bytes, length: int, attributes: int = 0) -> bytes:
    """The 22 bytes before a stream's data."""
    header = bytearray(_STREAM.pack(kind, 0, attributes, length, 0, 0, 0))
    struct.pack_into("<H", header, 20, header_checksum(header[:20]))
    return bytes(header)


def filemark_capacity(block_size: int) -> int:
    """How many earlier filemarks a soft filemark names."""
    return (min(block_size, LONGEST_FILEMARK) - 72) // 8


def filemark(offsets: tuple[int, ...], block_size: int) -> bytes:
    """A soft filemark that fills a physical block, and names as many of the earlier ones as it has room for.

    Its length field has 16 bits and cannot say 65536: there, how SQL Server does it being unknown, half of the block is
    the filemark and the other half an ESPB, the format's own block for padding to a physical block.

    Parameters
    ----------
    offsets : tuple of int
        Places of the earlier filemarks in the stream, newest first.
    block_size : int
        Bytes.
    """
    length = min(block_size, LONGEST_FILEMARK)
    block = bytearray(length)
    offsets = offsets[: filemark_capacity(block_size)]
    struct.pack_into("<3I", block, HEADER_SIZE, filemark_capacity(block_size), len(offsets), 72)
    struct.pack_into(f"<{len(offsets)}Q", block, 72, *offsets)
    mark = bytes(finish_header(block, b"SFMB", 0x80000000, length))
    if length == block_size:
        return mark
    pad = descriptor(b"ESPB", b"")
    rest = block_size - length - len(pad) - STREAM_HEADER_SIZE
    return mark + pad + stream_header(b"SPAD", rest) + bytes(rest)


def tape(media: MediaSet, started: datetime, sequence: int = 1) -> bytes:
    soft = media.block_size if media.soft_filemarks is None else media.soft_filemarks
    body = struct.pack(
        "<IIHHHH4s4s4s4sHH5sB", media.family_id, 5, sequence, 0, soft // 512, 3, b"", b"", b"", b"",
        FORMAT_BLOCK, VENDOR, encode_date(started), 1,
    )  # fmt: skip
    texts = ((68, media.name), (72, media.description), (80, SOFTWARE))
    return descriptor(b"TAPE", body, attributes=0x30000 | (CONTINUATION if sequence > 1 else 0), texts=texts)


def raid(media: MediaSet, family: int) -> bytes:
    """Content of the RAID stream: how many families there are and which one this is."""
    return media.guid + struct.pack("<I6H", 0xF00000AD, media.families, 1, family, 0, 0, 1)


def start_of_set(backup: BackupSet, offset: int, address: int = 0, attributes: int = 0) -> bytes:
    """`offset`: physical address; `address` and `attributes` of the common header, where the set is continued."""
    body = struct.pack(
        "<IHHHH4s4s4s4sQ5sBBbBB", _set_attributes(backup), 0, 0, VENDOR, backup.number, b"", b"", b"", b"", offset,
        encode_date(backup.started), SERVER_VERSION[0], SERVER_VERSION[1], 0, 0, 2,
    )  # fmt: skip
    texts = ((64, backup.name), (68, backup.description), (76, backup.user))
    os_data = backup.guid + bytes(5)
    return descriptor(b"SSET", body, attributes=attributes, address=address, os_data=os_data, texts=texts)


def _set_attributes(backup: BackupSet) -> int:
    return 8 if backup.kind == "I" else 4


def volume(backup: BackupSet, address: int, control: int, attributes: int = 0) -> bytes:
    body = struct.pack("<I4s4s4s5s", 2, b"", b"", b"", encode_date(backup.started))
    texts = ((56, "/"), (64, backup.machine))
    return descriptor(b"VOLB", body, attributes=attributes, address=address, control=control, texts=texts)


def end_of_tape() -> bytes:
    """What ends a cartridge whose last set goes on with the next one; the address of a finished set is left out."""
    return descriptor(b"EOTM", bytes(8), attributes=0x10000)


def padded(header: bytes, streams: tuple[tuple[bytes, bytes], ...], unit: int) -> bytes:
    """A block with its streams and the SPAD that ends it on a multiple of `unit`, by itself."""
    block = bytearray(header)
    for kind, content in streams:
        block += stream_header(kind, len(content)) + content
        block += bytes(padding(len(block)))
    pad = -(len(block) + STREAM_HEADER_SIZE) % unit
    return bytes(block + stream_header(b"SPAD", pad) + bytes(pad))


def end_of_set(backup: BackupSet, first_copy: int = 0) -> bytes:
    """`first_copy`: place of the first ESET in the stream, in the second one."""
    body = struct.pack("<IIQQHH5s", 0, 0, first_copy, 0, 0, backup.number, encode_date(backup.started))
    return descriptor(b"ESET", body)


def log_block(address: int, control: int, file_id: int, part: LogPart) -> bytes:
    """MSTL of one virtual log file."""
    body = bytearray(540)
    struct.pack_into("<II", body, 0, 0, 0x10000)
    struct.pack_into("<QQI", body, 8, part.start, part.end, file_id)
    struct.pack_into("<HH", body, 28, 500, 92)
    struct.pack_into("<IQQHB", body, 40, part.sequence, part.size, part.offset, 2, part.parity)
    return descriptor(b"MSTL", bytes(body), address=address, control=control)


def set_map(media: MediaSet, backup: BackupSet, offset: int, size: int) -> bytes:
    """Content of the TSMP stream: the sets on this medium so far, which is one."""
    user, machine = encode_text(backup.user), encode_text(backup.machine)
    fixed = 92
    volume_entry = bytearray(62)
    struct.pack_into("<4sII", volume_entry, 0, b"VOLB", 1, 0x10000)
    struct.pack_into("<BBHIHHIHH", volume_entry, 30, 14, 1, 2, 2, 2, 62, 0, len(machine), 64)
    volume_entry[54:59] = encode_date(backup.started)
    volume_entry += encode_text("/")
    entry = bytearray(fixed)
    struct.pack_into("<HHII", entry, 0, fixed + len(user) + padding(len(user)), 1, 0, _set_attributes(backup))
    struct.pack_into("<QQHH", entry, 12, offset, 0, 0, backup.number)
    struct.pack_into("<QIIIQH", entry, 32, 0, 0, 0, 0, size, 1)
    struct.pack_into("<HH", entry, 76, len(user), fixed)
    entry[80:85] = encode_date(backup.started)
    entry[85:89] = bytes((8, 14, 1, 2))
    entry += user + bytes(padding(len(user)))
    return struct.pack("<IHH", media.family_id, 1, 0) + bytes(entry + volume_entry) + machine
