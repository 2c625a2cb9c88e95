"""One media family, taken apart while its bytes arrive in pieces of any size.

Understands what `FamilyWriter` writes, and backups of SQL Server itself, compressed ones included. Everything in it is
checked before it is believed; nothing is copied but metadata and pages that straddle two pieces.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Sequence

import numpy as np

from . import blocks
from . import configuration as configurations
from .blocks import FORMAT_BLOCK, HEADER_SIZE, STREAM_HEADER_SIZE, LogPart, decode_date
from .checksums import combine, fold, header_checksum, sector_xors
from .container import MAGIC, ContainerError, Unpacker
from .findings import (
    BlockSizeError,
    ContinuationError,
    FamilyInfo,
    Label,
    MtfError,
    NoSetError,
    NotMtfError,
    TruncatedError,
)
from .pages import EXTENT_SIZE, PAGE_SIZE, Pages

_LONGEST_STREAM = 4 << 20  # of metadata; real configurations have a few KiB per file


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
    on_log : callable, optional
        Called with a `LogPart` without data and an array as for `on_pages`: log sectors, in sequence, rounded up.
    on_end : callable, optional
        Called with the `FamilyInfo` when a set was read to its end.
    position : int or None
        Number of the set to read, from 1; those before it are checked and reported to nobody. None: all sets, up to
        the end of the medium.
    keeps_marks : bool
        The device keeps filemarks itself: they come as calls of `mark`, not as blocks of the stream.
    skims : bool
        What `skippable` offers may be left out. Then no backup checksum is compared for it.

    Attributes
    ----------
    at_mark : bool
        A filemark comes next; only with `keeps_marks`.

    Notes
    -----
    `wanted` bytes at least are still to come; `feed` takes them. Raises `MtfError` and its subclasses.
    """

    def __init__(
        self,
        block_size: int,
        on_start: Callable[[FamilyInfo], None],
        on_pages: Callable[[Pages], None],
        on_log: Callable[[LogPart, Pages], None] | None = None,
        on_end: Callable[[FamilyInfo], None] | None = None,
        position: int | None = 1,
        *,
        keeps_marks: bool = False,
        skims: bool = False,
    ) -> None:
        self.at_mark = False
        self.keeps_marks = keeps_marks  # may be said until the first byte is fed
        self._skims = skims
        self._skipped = False  # a part of the data stream
        self._label_ended = False
        self._number = 0  # of the set
        self.info = FamilyInfo()
        self.finished = False
        self.empty = True
        self._device_block = block_size
        self._on_start = on_start
        self._on_pages = on_pages
        self._on_log = on_log
        self._on_end = on_end
        self._wanted_set = position
        self._active = False  # the set is one that was asked for
        self._sink: Callable[[Pages], None] | None = None
        self._between = False  # two sets: the medium may end
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
        self._unpacker: Unpacker | None = None  # of a compressed backup
        self._parser = self._family()
        self._advance()

    @property
    def wanted(self) -> int:
        """Bytes that are certain to follow what was fed so far; 0 at the end."""
        if self.finished:
            return 0
        if self._unpacker is not None:
            return self._unpacker.wanted
        if self._data_left:
            return self._data_left - len(self._partial)
        return max(1, self._need - len(self._buffer))

    @property
    def skippable(self) -> int:
        """Bytes that come next and that nobody wants: data of sets not asked for, or of all where it skims."""
        unwanted = (self._skims or not self._active) and self._unpacker is None
        return self._data_left if unwanted and not self._partial else 0

    @property
    def at_set(self) -> bool:
        """The label and the filemark behind it were read, and nothing else."""
        return self._label_ended and self._set_start < 0

    @property
    def within_set(self) -> bool:
        """A backup set has begun and not ended: no medium of the family may end here but a full one."""
        return bool(self.info.families) and not self._between and not self.finished

    def skip(self, count: int) -> None:
        """Go on behind bytes that were not read: `skippable` ones at most, whole pages."""
        if count > self.skippable or count % PAGE_SIZE:
            raise ValueError(f"{count} bytes cannot be skipped")
        self._skipped = True
        self._data_left -= count
        self._position += count
        if not self._data_left:
            self._advance()

    def mark(self) -> None:
        """A filemark was met. Raises `TruncatedError` where none belongs."""
        if not self.at_mark or self._buffer:
            raise TruncatedError(f"a filemark at byte {self._position + len(self._buffer)}, within a backup set")
        self.at_mark = False
        self._need = 0
        self._advance()

    def go_to(self, number: int, place: int, marks: Sequence[int]) -> None:
        """The next bytes are those of another set than the first; to be called between the label and the first set.

        Parameters
        ----------
        number : int
            Of the set.
        place : int
            Of its first byte in the stream.
        marks : sequence of int
            Places of the filemarks before it, newest first.
        """
        if self._number != 1 or not self.at_set or self._buffer:
            raise ValueError("a set has begun already")
        self._number = number
        self._position = place
        self._marks = list(marks)
        self._between = True  # the medium may end here

    def feed(self, data: memoryview) -> None:
        """Take the next bytes of the stream; bytes behind the end of the set are ignored."""
        self.empty = self.empty and not len(data)
        if self.at_mark and len(data):
            raise MtfError(f"no filemark at byte {self._position}")
        if self._unpacker is None:
            data = self._take(data)
        if self._unpacker is not None and len(data):
            try:
                for piece in self._unpacker.feed(data):
                    self._take(memoryview(piece))
                    if self.finished:
                        break
            except ContainerError as error:
                raise MtfError(str(error)) from error

    def _take(self, data: memoryview) -> memoryview:
        """Take bytes of the tape format; returns those that turn out to be a container's."""
        before = self._unpacker
        while len(data) and not self.finished and self._unpacker is before:
            if self._data_left:
                taken = self._feed_pages(data)
                data = data[taken:]
            else:
                lacking = self._need - len(self._buffer)
                self._buffer += data[:lacking]
                data = data[lacking:]
            if not self._data_left:
                self._advance()
        return data

    def stop(self) -> None:
        """Take nothing more; also from within a callback."""
        self.finished = True

    def end(self) -> None:
        """There is no more. Raises `TruncatedError` if a set has not ended, `NoSetError` if there is none such."""
        if self._between and not self._buffer and (self._unpacker is None or self._unpacker.empty):
            if self._wanted_set is not None:
                raise NoSetError(self._wanted_set)
            self.finished = True
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
        if self._active and self._sink is not None:
            self._sink(pages)
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
        self._label_ended = True
        assert self.info.label is not None
        if self.info.label.sequence != 1:
            raise ContinuationError(self.info.label.sequence)
        while self._number != self._wanted_set:
            self._number += 1
            self._between = self._number > 1
            if (yield from self._ends_here()):
                return
            self._between = False
            self._active = self._wanted_set in (None, self._number)
            yield from self._set(self._number)

    def _ends_here(self) -> Generator[int, None, bool]:
        """Whether only zeros follow where a set could begin: the unused rest of a medium."""
        while len(self._buffer) < HEADER_SIZE:
            yield HEADER_SIZE
        ends = self._between and not any(self._buffer[:4])
        if ends and self._wanted_set is not None:
            raise NoSetError(self._wanted_set)
        return ends

    def _set(self, number: int) -> Generator[int, None, None]:
        info = self.info
        self._set_start = self._position
        self._control = 0
        kind, header = yield from self._block()
        self._require(kind == b"SSET" and len(header) >= 98, "SSET is missing")
        info.attributes, = struct.unpack_from("<I", header, 52)
        info.number, = struct.unpack_from("<H", header, 62)
        self._require(info.number == number, f"backup set {info.number} in place {number}")
        info.name, info.description, info.user = (self._text(header, at) for at in (64, 68, 76))
        info.set_guid = self._address_of(header, 44)[:16]
        self._require(len(info.set_guid) == 16, "SSET names no backup set")
        yield from self._streams({b"SPAD": 1})
        kind, header = yield from self._block()
        self._require(kind == b"VOLB" and len(header) >= 73, "VOLB is missing")
        info.machine = self._text(header, 64)
        yield from self._streams({b"SPAD": 1})
        kind, header = yield from self._block()
        self._require(kind == b"MSCI", "MSCI is missing")
        start = (yield from self._streams({b"MQCI": 1, b"SPAD": 1}))[b"MQCI"]
        self._configuration(start)
        if self._active:
            self.started = True
            self._on_start(info)
        kind, header = yield from self._block()
        while kind in (b"MSDA", b"MSTL"):
            yield from self._data() if kind == b"MSDA" else self._log(header)
            kind, header = yield from self._block()
        self._require(kind == b"MSLS", f"{kind!r} instead of MSLS")
        last = (yield from self._streams({b"MQCI": 1, b"SPAD": 1}))[b"MQCI"]
        lasting = configurations.lasting
        same = lasting(last, self._require) == lasting(start, self._require)
        self._require(same, "MSLS does not repeat MSCI")
        info.configuration = configurations.parse(last, self._require)
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
        if self._active and self._on_end is not None:
            self._on_end(info)

    def _tape(self) -> Generator[int, None, None]:
        # One device block at least is always transferred, and it holds all of TAPE's own header.
        header = yield from self._read(HEADER_SIZE)
        if header.startswith(MAGIC):
            self._unpacker = Unpacker()
            list(self._unpacker.feed(header))  # less than its beginning: nothing comes out yet
            self._position = 0
            self.info.compressed = True
            header = yield from self._read(HEADER_SIZE)
        if header[:4] != b"TAPE":
            raise NotMtfError("the stream does not begin with a TAPE block")
        rest = yield from self._header_rest(header)
        block = header + rest
        self._require(len(block) >= 94, "TAPE is too short")
        units, = struct.unpack_from("<H", block, 64)
        form, = struct.unpack_from("<H", block, 84)
        self.info.block_size = self._device_block if self.keeps_marks else units * 512
        if self.info.block_size != self._device_block:
            raise BlockSizeError(self.info.block_size, self._device_block)
        self._require(form == FORMAT_BLOCK, f"format block size {form}")
        family_id, = struct.unpack_from("<I", block, 52)
        sequence, = struct.unpack_from("<H", block, 60)
        vendor, = struct.unpack_from("<H", block, 86)
        name, description, software = (self._text(block, at) for at in (68, 72, 80))
        self.info.label = Label(
            name, description, software, vendor, decode_date(block[88:93]), family_id, sequence,
            bool(self._address_of(block, 76)),
        )  # fmt: skip
        raid = (yield from self._streams({b"RAID": 1, b"SPAD": 1}))[b"RAID"]
        self._require(len(raid) == 32, "RAID has another length")
        self.info.media_guid = raid[:16]
        self.info.families, _, self.info.family = struct.unpack_from("<3H", raid, 20)
        self._require(1 <= self.info.family <= self.info.families <= 64, "RAID names an impossible family")

    def _data(self) -> Generator[int, None, None]:
        total = 0
        pending = False  # a CSUM must follow
        while True:
            kind, attributes, length = yield from self._stream()
            self._require(not pending or kind == b"CSUM", "CSUM is missing")
            if kind == b"APAD":
                self._require(not any((yield from self._content(length))), "APAD is not empty")
            elif kind == b"MQDA" and length == 0:
                self._require(attributes == blocks.VARIABLE | blocks.LAST and total > 0, "MQDA ends in a wrong way")
                yield from self._pad()
            elif kind == b"MQDA":
                promised = blocks.VARIABLE | (blocks.CSUM_FOLLOWS if self.info.checksum else 0)
                self._require(attributes == promised, "MQDA has unexpected attributes")
                # Fill pages make it longer than its share, never longer than all pages and an extent.
                limit = (self.info.pages * PAGE_SIZE + EXTENT_SIZE - 1) // EXTENT_SIZE * EXTENT_SIZE
                self._require(total + length - 2 <= limit, f"MQDA of {length} bytes is longer than the database")
                total += length - 2
                yield from self._extents(length, self._on_pages)
                pending = self.info.checksum
            elif kind == b"CSUM":
                self._require(pending, "CSUM out of place")
                yield from self._csum(length)
                pending = False
            elif kind == b"SPAD":
                self._require(total > 0, "MSDA without pages")
                self._require(not any((yield from self._content(length, pad=False))), "SPAD is not empty")
                return
            else:
                raise MtfError(f"stream {kind!r} in MSDA")

    def _log(self, header: bytes) -> Generator[int, None, None]:
        self._require(len(header) >= 128, "MSTL is too short")
        start, end = struct.unpack_from("<2Q", header, 60)
        sequence, size, offset = struct.unpack_from("<I2Q", header, 92)
        part = LogPart(sequence, start, end, size, offset, header[114])
        self._require(start <= end and start % 512 == end % 512 == 0, "MSTL names an impossible range")
        kind, attributes, length = yield from self._stream()
        if kind == b"APAD":
            self._require(not any((yield from self._content(length))), "APAD is not empty")
            kind, attributes, length = yield from self._stream()
            promised = blocks.CSUM_FOLLOWS if self.info.checksum else 0
            self._require(kind == b"MQTL" and attributes == promised, f"stream {kind!r} instead of MQTL")
            used = (end - start + EXTENT_SIZE - 1) // EXTENT_SIZE * EXTENT_SIZE
            self._require(length - 2 == used, f"MQTL of {length} bytes for {end - start} of log")
            left = end - start

            def sectors(data: Pages) -> None:
                nonlocal left
                flat = data.reshape(-1)[:left]
                self._require(not ((flat[::512] & 0xC0) != part.parity).any(), "log sectors have the wrong parity")
                left -= len(flat)
                if self._on_log is not None and self._active:
                    self._on_log(part, data)

            yield from self._extents(length, sectors)
            if self.info.checksum:
                kind, _, length = yield from self._stream()
                self._require(kind == b"CSUM", "CSUM is missing")
                yield from self._csum(length)
            kind, _, length = yield from self._stream()
        self._require(kind == b"SPAD", f"stream {kind!r} in MSTL")
        self._require(not any((yield from self._content(length, pad=False))), "SPAD is not empty")

    def _extents(self, length: int, sink: Callable[[Pages], None]) -> Generator[int, None, None]:
        """The data of MQDA or MQTL: two zeros, then whole extents that go where they are wanted."""
        size = length - 2
        self._require(size > 0 and size % EXTENT_SIZE == 0, f"a data stream of {length} bytes is no whole extents")
        self._require(not any((yield from self._read(2))), "a data stream does not begin with zeros")
        self._require(self._position % self.info.block_size == 0, "data does not begin on a physical block")
        self._checksum = 0
        self._skipped = False
        self._sink = sink
        self._data_left = size
        yield 0  # feed() takes the data and comes back when there is none left
        yield from self._pad()

    def _csum(self, length: int) -> Generator[int, None, None]:
        self._require(length == 4, "CSUM has another length")
        stored, = struct.unpack("<I", (yield from self._content(4)))
        own = self._checksum
        self._require(stored == own or self._skipped, f"backup checksum {own:#010x}, stored {stored:#010x}")

    def _filemark(self) -> Generator[int, None, None]:
        place = self._position
        self._require(place % self.info.block_size == 0, "a filemark does not begin on a physical block")
        if self.keeps_marks:
            self.at_mark = True
            while self.at_mark:
                yield len(self._buffer) + 1
            return
        length = min(self.info.block_size, blocks.LONGEST_FILEMARK)
        block = yield from self._read(length)
        if self._unpacker is not None:
            place = self._unpacker.place
        self._check_header(block[:HEADER_SIZE], b"SFMB")
        self._require(struct.unpack_from("<H", block, 8)[0] == length, "a filemark has another length")
        used, = struct.unpack_from("<I", block, 56)
        most = blocks.filemark_capacity(self.info.block_size)
        self._require(used == min(len(self._marks), most), "a filemark lists others than there are")
        earlier = list(struct.unpack_from(f"<{used}Q", block, 72))
        self._require(earlier == self._marks[:used], "a filemark names wrong places")
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
        self._require(kind in (b"MQDA", b"MQTL") or length <= _LONGEST_STREAM, f"{kind!r} is impossibly long")
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
        info = self.info
        info.configuration = found = configurations.parse(data, self._require)
        info.checksum = found.checksum
        info.snapshot = found.snapshot
        info.database = found.database
        info.server = found.server
        info.files = [(file.file_id, file.name, file.pages) for file in found.files]
        info.pages = sum(file.pages for file in found.files)

    def _text(self, record: bytes, at: int) -> str:
        """What an address in a descriptor block names."""
        raw = self._address_of(record, at)
        try:
            return raw.decode("latin-1" if record[48] == 1 else "utf-16-le").rstrip("\0")
        except UnicodeDecodeError as error:
            raise MtfError("a name is no text") from error

    def _address_of(self, record: bytes, at: int) -> bytes:
        size, offset = struct.unpack_from("<HH", record, at)
        self._require(offset + size <= len(record), "an address points out of its block")
        return record[offset : offset + size]

    @staticmethod
    def _require(condition: bool, text: str) -> None:
        if not condition:
            raise MtfError(text)
