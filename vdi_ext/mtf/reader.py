"""One media family, taken apart while its bytes arrive in pieces of any size.

Understands what `FamilyWriter` writes: an uncompressed stream with one backup set and no log. Everything in it is
checked before it is believed; nothing is copied but metadata and pages that straddle two pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np

from . import blocks
from .blocks import FORMAT_BLOCK, HEADER_SIZE, STREAM_HEADER_SIZE
from .checksums import combine, fold, header_checksum, sector_xors
from .pages import EXTENT_SIZE, PAGE_SIZE, Pages

_LONGEST_STREAM = 4 << 20  # of metadata; real configurations have a few KiB per file


class MtfError(Exception):
    """The stream is not what it says: damaged, or of a form that is not understood."""


class NotMtfError(MtfError):
    """The stream does not begin as tape format does."""


class BlockSizeError(MtfError):
    """The stream was written with another block size.

    Parameters
    ----------
    found : int
        Bytes.
    """

    def __init__(self, found: int, expected: int) -> None:
        super().__init__(f"written with a block size of {found} bytes and read with {expected}")
        self.found = found


class TruncatedError(MtfError):
    """The stream ended before the backup set did."""


@dataclass
class FamilyInfo:
    """What the beginning of a family says."""

    media_guid: bytes = b""
    families: int = 0
    family: int = 0
    block_size: int = 0
    set_guid: bytes = b""
    database: str = ""
    server: str = ""
    checksum: bool = False
    pages: int = 0  # in all families together
    files: list[tuple[int, str, int]] = field(default_factory=list)  # id, logical name, pages


class FamilyReader:
    """Reads one family.

    Parameters
    ----------
    block_size : int
        The device's; transfers are multiples of it, and it must be the one that the family was written with.
    on_start : callable
        Called with the `FamilyInfo` when the start-of-set configuration has been read, before any page.
    on_pages : callable
        Called with an array ``(n, 8192)`` of uint8, valid during the call only.

    Notes
    -----
    `wanted` bytes at least are still to come; `feed` takes them. Raises `MtfError` and its subclasses.
    """

    def __init__(
        self, block_size: int, on_start: Callable[[FamilyInfo], None], on_pages: Callable[[Pages], None]
    ) -> None:
        self.info = FamilyInfo()
        self.finished = False
        self.empty = True
        self._device_block = block_size
        self._on_start = on_start
        self._on_pages = on_pages
        self._buffer = bytearray()
        self.started = False  # on_start was called
        self._position = 0  # of the first byte in the buffer, in the stream
        self._need = 0
        self._data_left = 0
        self._partial = bytearray()  # the beginning of a page whose rest is in the next piece
        self._checksum = 0
        self._set_start = -1
        self._control = 0
        self._marks: list[int] = []
        self._parser = self._family()
        self._advance()

    @property
    def wanted(self) -> int:
        """Bytes that are certain to follow what was fed so far; 0 at the end."""
        if self.finished:
            return 0
        if self._data_left:
            return self._data_left - len(self._partial)
        return max(1, self._need - len(self._buffer))

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the stream; bytes behind the end of the set are ignored."""
        self.empty = self.empty and not len(data)
        while len(data) and not self.finished:
            if self._data_left:
                taken = self._feed_pages(data)
                data = data[taken:]
            else:
                lacking = self._need - len(self._buffer)
                self._buffer += data[:lacking]
                data = data[lacking:]
            if not self._data_left:
                self._advance()

    def end(self) -> None:
        """There is no more. Raises `TruncatedError` if the set has not ended."""
        if not self.finished:
            raise TruncatedError(f"the stream ends before byte {self._position + len(self._buffer) + self.wanted}")

    # ---- pages

    def _feed_pages(self, data: memoryview) -> int:
        if self._partial or len(data) < PAGE_SIZE:
            taken = min(PAGE_SIZE - len(self._partial), len(data))
            self._partial += data[:taken]
            if len(self._partial) == PAGE_SIZE:
                page = np.frombuffer(bytes(self._partial), np.uint8)
                self._partial.clear()
                self._take_pages(page.reshape(1, PAGE_SIZE))
            return taken
        taken = min(len(data), self._data_left) // PAGE_SIZE * PAGE_SIZE
        self._take_pages(np.frombuffer(data[:taken], np.uint8).reshape(-1, PAGE_SIZE))
        return taken

    def _take_pages(self, pages: Pages) -> None:
        if self.info.checksum:
            sectors = sector_xors(pages)
            self._checksum = combine(self._checksum, fold(sectors), len(sectors))
        self._on_pages(pages)
        self._data_left -= pages.nbytes
        self._position += pages.nbytes

    # ---- metadata: a generator that waits until enough of it has come

    def _advance(self) -> None:
        while not self.finished and not self._data_left and len(self._buffer) >= self._need:
            try:
                self._need = next(self._parser)
            except StopIteration:
                self.finished = True

    def _read(self, length: int) -> Generator[int, None, bytes]:
        while len(self._buffer) < length:
            yield length
        piece = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._position += length
        return piece

    def _family(self) -> Generator[int, None, None]:
        yield from self._tape()
        yield from self._filemark()
        self._set_start = self._position
        kind, header = yield from self._block()
        self._require(kind == b"SSET" and len(header) >= 98, "SSET is missing")
        self.info.set_guid = self._address_of(header, 44)[:16]
        self._require(len(self.info.set_guid) == 16, "SSET names no backup set")
        yield from self._streams({b"SPAD": 1})
        kind, header = yield from self._block()
        self._require(kind == b"VOLB", "VOLB is missing")
        yield from self._streams({b"SPAD": 1})
        kind, header = yield from self._block()
        self._require(kind == b"MSCI", "MSCI is missing")
        start = (yield from self._streams({b"MQCI": 1, b"SPAD": 1}))[b"MQCI"]
        self._configuration(start)
        self.started = True
        self._on_start(self.info)
        kind, header = yield from self._block()
        if kind == b"MSDA":
            yield from self._data()
            kind, header = yield from self._block()
        while kind == b"MSTL":
            yield from self._streams({b"SPAD": 1})
            kind, header = yield from self._block()
        self._require(kind == b"MSLS", f"{kind!r} instead of MSLS")
        last = (yield from self._streams({b"MQCI": 1, b"SPAD": 1}))[b"MQCI"]
        self._require(_without_end_fields(last) == _without_end_fields(start), "MSLS does not repeat MSCI")
        yield from self._filemark()
        kind, header = yield from self._block(in_set=False)
        self._require(kind == b"ESET", "ESET is missing")
        self._require(len(header) >= 85, "ESET is too short")
        self._require(not struct.unpack_from("<I", header, 52)[0] & 1 << 18, "the set was aborted")
        yield from self._streams({b"OTCP": 1, b"TSMP": 1, b"SPAD": 1})
        kind, header = yield from self._block(in_set=False)
        self._require(kind == b"ESET", "the second ESET is missing")
        yield from self._streams({b"SPAD": 1})
        yield from self._filemark()

    def _tape(self) -> Generator[int, None, None]:
        # One device block at least is always transferred, and it holds all of TAPE's own header.
        header = yield from self._read(HEADER_SIZE)
        if header[:4] != b"TAPE":
            raise NotMtfError("the stream does not begin with a TAPE block")
        rest = yield from self._header_rest(header)
        block = header + rest
        self._require(len(block) >= 94, "TAPE is too short")
        units, = struct.unpack_from("<H", block, 64)
        form, = struct.unpack_from("<H", block, 84)
        self.info.block_size = units * 512
        if self.info.block_size != self._device_block:
            raise BlockSizeError(self.info.block_size, self._device_block)
        self._require(form == FORMAT_BLOCK, f"format block size {form}")
        raid = (yield from self._streams({b"RAID": 1, b"SPAD": 1}))[b"RAID"]
        self._require(len(raid) == 32, "RAID has another length")
        self.info.media_guid = raid[:16]
        self.info.families, _, self.info.family = struct.unpack_from("<3H", raid, 20)
        self._require(1 <= self.info.family <= self.info.families <= 64, "RAID names an impossible family")

    def _data(self) -> Generator[int, None, None]:
        total = 0
        pieces = 0
        pending = False  # a CSUM must follow
        while True:
            kind, attributes, length = yield from self._stream()
            self._require(not pending or kind == b"CSUM", "CSUM is missing")
            if kind == b"APAD":
                self._require(not any((yield from self._content(length))), "APAD is not empty")
            elif kind == b"MQDA" and length == 0:
                self._require(attributes == blocks.VARIABLE | blocks.LAST and pieces == 1, "MQDA ends in a wrong way")
                yield from self._pad()
            elif kind == b"MQDA":
                promised = blocks.VARIABLE | (blocks.CSUM_FOLLOWS if self.info.checksum else 0)
                self._require(pieces == 0 and attributes == promised, "MQDA has unexpected attributes")
                size = length - 2
                self._require(size > 0 and size % EXTENT_SIZE == 0, f"MQDA of {length} bytes is no whole extents")
                # Fill pages make it longer than its share, never longer than all pages and an extent.
                limit = (self.info.pages * PAGE_SIZE + EXTENT_SIZE - 1) // EXTENT_SIZE * EXTENT_SIZE
                self._require(size <= limit, f"MQDA of {length} bytes is longer than the database")
                prefix = yield from self._read(2)
                self._require(not any(prefix), "MQDA does not begin with zeros")
                self._require(self._position % self.info.block_size == 0, "pages do not begin on a physical block")
                total = size
                self._data_left = size
                yield 0  # feed() takes the pages and comes back when there are none left
                pieces += 1
                pending = self.info.checksum
                yield from self._pad()
            elif kind == b"CSUM":
                self._require(pending and length == 4, "CSUM out of place")
                stored, = struct.unpack("<I", (yield from self._content(4)))
                own = self._checksum
                self._require(stored == own, f"backup checksum {own:#010x}, stored {stored:#010x}")
                pending = False
            elif kind == b"SPAD":
                self._require(pieces == 1 and total > 0, "MSDA without pages")
                self._require(not any((yield from self._content(length, pad=False))), "SPAD is not empty")
                return
            else:
                raise MtfError(f"stream {kind!r} in MSDA")

    def _filemark(self) -> Generator[int, None, None]:
        place = self._position
        self._require(place % self.info.block_size == 0, "a filemark does not begin on a physical block")
        length = min(self.info.block_size, blocks.LONGEST_FILEMARK)
        block = yield from self._read(length)
        self._check_header(block[:HEADER_SIZE], b"SFMB")
        self._require(struct.unpack_from("<H", block, 8)[0] == length, "a filemark has another length")
        used, = struct.unpack_from("<I", block, 56)
        self._require(used == len(self._marks), "a filemark lists others than there are")
        earlier = list(struct.unpack_from(f"<{used}Q", block, 72))
        self._require(earlier == self._marks, "a filemark names wrong places")
        self._require(not any(block[72 + 8 * used :]), "a filemark holds more than it lists")
        self._marks.insert(0, place)
        if length < self.info.block_size:
            kind, _ = yield from self._block(in_set=False)
            self._require(kind == b"ESPB", "a filemark is not padded")
            yield from self._streams({b"SPAD": 1})

    def _block(self, in_set: bool = True) -> Generator[int, None, tuple[bytes, bytes]]:
        """The next descriptor block up to its streams."""
        place = self._position
        header = yield from self._read(HEADER_SIZE)
        kind = header[:4]
        rest = yield from self._header_rest(header)
        address, = struct.unpack_from("<Q", header, 20)
        control, = struct.unpack_from("<I", header, 36)
        if in_set:
            offset = place - self._set_start
            self._require(offset % FORMAT_BLOCK == 0, f"{kind!r} is off the grid")
            self._require(address == offset // FORMAT_BLOCK, f"{kind!r} has the wrong address")
            self._require(control == self._control, f"{kind!r} is out of sequence")
            self._control += 1
        return kind, header + rest

    def _header_rest(self, header: bytes) -> Generator[int, None, bytes]:
        self._check_header(header, header[:4])
        first, = struct.unpack_from("<H", header, 8)
        self._require(HEADER_SIZE <= first <= 8192 and first % 4 == 0, f"{header[:4]!r} has an impossible length")
        return (yield from self._read(first - HEADER_SIZE))

    def _check_header(self, header: bytes, kind: bytes) -> None:
        stored, = struct.unpack_from("<H", header, 50)
        self._require(header_checksum(header[:50]) == stored, f"the header at {self._position:#x} is damaged")
        self._require(header[:4] == kind, f"{header[:4]!r} instead of {kind!r}")

    def _stream(self) -> Generator[int, None, tuple[bytes, int, int]]:
        header = yield from self._read(STREAM_HEADER_SIZE)
        stored, = struct.unpack_from("<H", header, 20)
        good = header_checksum(header[:20]) == stored
        self._require(good, f"the stream header before {self._position:#x} is damaged")
        kind, _, attributes, length, encryption, compression = struct.unpack_from("<4sHHQHH", header)
        self._require(not encryption and not compression, f"{kind!r} is encrypted or compressed")
        self._require(kind == b"MQDA" or length <= _LONGEST_STREAM, f"{kind!r} is impossibly long")
        return kind, attributes, length

    def _content(self, length: int, pad: bool = True) -> Generator[int, None, bytes]:
        data = yield from self._read(length)
        if pad:
            yield from self._pad()
        return data

    def _pad(self) -> Generator[int, None, None]:
        lacking = blocks.padding(self._position)
        if lacking:
            yield from self._read(lacking)

    def _streams(self, expected: dict[bytes, int]) -> Generator[int, None, dict[bytes, bytes]]:
        """The streams of a block of metadata; each of `expected`, in that order."""
        found = {}
        for wanted in expected:
            kind, _, length = yield from self._stream()
            self._require(kind == wanted, f"stream {kind!r} instead of {wanted!r}")
            found[kind] = yield from self._content(length, pad=kind != b"SPAD")
            self._require(kind not in (b"SPAD", b"OTCP") or not any(found[kind]), f"{kind!r} is not empty")
        return found

    # ---- configuration

    def _configuration(self, data: bytes) -> None:
        self._require(len(data) >= 364 and data[:4] == b"SCIN", "SCIN is missing")
        length, flags = struct.unpack_from("<II", data, 4)
        self._require(364 <= length <= len(data), "SCIN has an impossible length")
        self._require(data[87:88] == b"D", "not a full database backup")
        info = self.info
        info.checksum = bool(flags & 0x10)
        info.database = self._text(data[:length], 104)
        info.server = self._text(data[:length], 108)
        place = length
        while place < len(data):
            self._require(place + 8 <= len(data), "the configuration ends inside a record")
            length, = struct.unpack_from("<I", data, place + 4)
            self._require(8 <= length <= len(data) - place, "a configuration record has an impossible length")
            record = data[place : place + length]
            if record[:4] == b"SFIN":
                self._require(length >= 56, "SFIN is too short")
                file_id, pages = struct.unpack_from("<II", record, 20)
                group, = struct.unpack_from("<I", record, 36)
                info.files.append((file_id, self._text(record, 48), pages if group else 0))
            place += length
        info.pages = sum(pages for _, _, pages in info.files)

    def _text(self, record: bytes, at: int) -> str:
        try:
            return self._address_of(record, at).decode("utf-16-le")
        except UnicodeDecodeError as error:
            raise MtfError("a name in the configuration is no text") from error

    def _address_of(self, record: bytes, at: int) -> bytes:
        size, offset = struct.unpack_from("<HH", record, at)
        self._require(offset + size <= len(record), "an address points out of its block")
        return record[offset : offset + size]

    @staticmethod
    def _require(condition: bool, text: str) -> None:
        if not condition:
            raise MtfError(text)


def _without_end_fields(configuration: bytes) -> bytes:
    """Without finish date and final size, which only the copy at the end has."""
    return configuration[:82] + configuration[87:96] + configuration[104:]
