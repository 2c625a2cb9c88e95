"""One media family, written from front to back.

    TAPE SFMB SSET VOLB MSCI [MSDA] MSTL... MSLS SFMB ESET(OTCP, TSMP) ESET SFMB

The pages themselves do not pass through here: they are sent from where they are made. `begin` gives what precedes
them, `pages` takes note of them, `end` gives what follows.
"""

from __future__ import annotations

from datetime import datetime

from . import blocks
from .blocks import FORMAT_BLOCK, BackupSet, LogPart, MediaSet
from .checksums import SECTOR_SIZE, Words, combine, fold, stream_checksum
from .configuration import configuration
from .pages import EXTENT_PAGES, EXTENT_SIZE, PAGE_SIZE


def label(media: MediaSet, family: int, written: datetime, sequence: int = 1) -> bytes:
    """What begins a volume: TAPE with RAID; a filemark follows.

    Parameters
    ----------
    media : MediaSet
    family : int
        From 1.
    written : datetime
    sequence : int
        Of the volume in its family, from 1.
    """
    unit = max(FORMAT_BLOCK, media.block_size)
    return blocks.padded(blocks.tape(media, written, sequence), ((b"RAID", blocks.raid(media, family)),), unit)


class FamilyWriter:
    """Metadata of one family's stream.

    Parameters
    ----------
    media : MediaSet
    backup : BackupSet
    family : int
        From 1.
    extents : int
        Extents of 64 KiB that this family will hold, fill extents included; 0 for a family without data. SQL Server
        fixes it in advance, the same for all families, and evens it out with fill pages; which extents a family gets
        is open.
    start : int
        Where the set begins on its medium: behind the last filemark of the set before it, or of the label. At the very
        beginning, the label comes first.
    marks : tuple of int
        Places of the filemarks before it, newest first.
    address : int, optional
        Physical address of the set as its device told it; `start` where no device can.

    Attributes
    ----------
    cuts : list of int
        Where filemarks belong in what `begin` or `end` returned last, as offsets into it: those that the device keeps
        itself. Empty where filemarks are soft, that is blocks of the stream.
    """

    def __init__(
        self,
        media: MediaSet,
        backup: BackupSet,
        family: int,
        extents: int,
        start: int = 0,
        marks: tuple[int, ...] = (),
        address: int | None = None,
    ) -> None:
        self.cuts: list[int] = []
        self.media = media
        self.backup = backup
        self.family = family
        self.extents = extents
        self._pending = bytearray()
        self._sent = start
        self._sectors = 0
        self._checksum = 0
        self._marks = marks
        self._device_address = address
        self._set_start = 0
        self._control = 0

    # ---- the whole family in three steps

    def medium(self) -> bytes:
        """What precedes the backup set, for a stream that tells it in advance: `begin` gives the rest then.

        A whole number of physical blocks.
        """
        self._medium()
        return self._take()

    def begin(self) -> bytes:
        """What precedes the first page, or, without data, the MSTL block; a whole number of physical blocks.

        With no data this is empty: all of the family is in `end`.
        """
        backup = self.backup
        self.cuts = []
        if not self._position:
            self._medium()
        self._set_start = self._position
        self._block(blocks.start_of_set(backup, self._place_of_set), [], FORMAT_BLOCK)
        self._block(blocks.volume(backup, self._address, self._next_control()), [], FORMAT_BLOCK)
        self._configuration(b"MSCI", configuration(backup, backup.size), FORMAT_BLOCK)
        if not self.extents:
            return b""
        body = (0).to_bytes(4, "little") + (0x10000).to_bytes(4, "little")
        self._pending += blocks.descriptor(b"MSDA", body, address=self._address, control=self._next_control())
        self._align_data()
        attributes = blocks.VARIABLE | (blocks.CSUM_FOLLOWS if backup.checksum else 0)
        self._pending += blocks.stream_header(b"MQDA", 2 + self.extents * EXTENT_SIZE, attributes) + bytes(2)
        return self._take()

    def pages(self, count: int, sectors: Words | None = None) -> None:
        """Take note of pages that were sent in sequence.

        Parameters
        ----------
        count : int
            Pages.
        sectors : numpy.ndarray of uint32, optional
            Their `sector_xors`; needed WITH CHECKSUM.
        """
        self._sent += count * PAGE_SIZE
        self._sectors += count * PAGE_SIZE // SECTOR_SIZE
        if sectors is not None:
            self._checksum = combine(self._checksum, fold(sectors), len(sectors))

    def end(self, finished: datetime) -> bytes:
        """What follows the last page; a whole number of physical blocks.

        Raises
        ------
        ValueError
            Other pages were noted than announced.
        """
        if self.extents:
            self.cuts = []
        if self._sectors * SECTOR_SIZE != self.extents * EXTENT_SIZE:
            raise ValueError(
                f"family {self.family} holds {self._sectors // 16} pages of {self.extents * EXTENT_PAGES} announced"
            )
        if self.extents:
            if self.backup.checksum:
                self._pending += blocks.stream_header(b"CSUM", 4) + self._checksum.to_bytes(4, "little")
                self._pending += bytes(blocks.padding(self._position))
            self._pending += blocks.stream_header(b"MQDA", 0, blocks.VARIABLE | blocks.LAST)
            self._pending += bytes(blocks.padding(self._position))
            self._space(FORMAT_BLOCK)
        log = next((file for file in self.backup.files if file.is_log), None)
        if log is not None:
            # SQL Server describes every virtual log file there is; here one of an empty log stands for all.
            for part in self.backup.log or (LogPart(1, 0, 0, log.size, 8192, 0x40),):
                self._log(log.file_id, part)
        # The filemark behind it begins on a physical block.
        self._configuration(b"MSLS", configuration(self.backup, self.backup.size, finished), self._unit)
        self._filemark()
        first = self._position
        table = blocks.set_map(self.media, self.backup, self._place_of_set, first - self._set_start)
        self._end_of_set(blocks.end_of_set(self.backup), table)
        self._block(blocks.end_of_set(self.backup, first), [], self._unit)
        self._filemark()
        return self._take()

    def _medium(self) -> None:
        self._pending += label(self.media, self.family, self.backup.started)
        self._filemark()

    def continuation(self, place: int, address: int) -> bytes:
        """The blocks of this set that are repeated on the next volume, before the stream goes on there.

        Parameters
        ----------
        place : int
            Of the stream's next byte, from the beginning of the first volume.
        address : int
            Physical address of the first of these blocks on the new volume.
        """
        first = blocks.start_of_set(self.backup, address, attributes=blocks.CONTINUATION)
        size = len(blocks.padded(first, (), FORMAT_BLOCK))
        second = blocks.volume(self.backup, 0, 1, attributes=blocks.CONTINUATION)
        whole = size + len(blocks.padded(second, (), self._unit))
        whole += -whole % self._unit
        # Addresses are those of the set, so that a block's place on this volume follows from them; modulo 2**64.
        at = (place - whole - self._set_start) // FORMAT_BLOCK
        first = blocks.start_of_set(self.backup, address, at % 2**64, blocks.CONTINUATION)
        second = blocks.volume(self.backup, (at + size // FORMAT_BLOCK) % 2**64, 1, blocks.CONTINUATION)
        pad = whole - size - len(second) - blocks.STREAM_HEADER_SIZE
        return blocks.padded(first, (), FORMAT_BLOCK) + second + blocks.stream_header(b"SPAD", pad) + bytes(pad)

    # ---- places

    @property
    def _place_of_set(self) -> int:
        return self._set_start if self._device_address is None else self._device_address

    @property
    def _position(self) -> int:
        return self._sent + len(self._pending)

    @property
    def _unit(self) -> int:
        return max(FORMAT_BLOCK, self.media.block_size)

    @property
    def _address(self) -> int:
        """Format logical address of a block that starts here."""
        return (self._position - self._set_start) // FORMAT_BLOCK

    def _next_control(self) -> int:
        self._control += 1
        return self._control

    def _to_grid(self, position: int, unit: int) -> int:
        return -(position - self._set_start) % unit

    def _take(self) -> bytes:
        piece = bytes(self._pending)
        self._pending.clear()
        self._sent += len(piece)
        return piece

    # ---- blocks

    def _space(self, unit: int) -> None:
        """The SPAD stream that ends every block, up to the grid."""
        pad = self._to_grid(self._position + blocks.STREAM_HEADER_SIZE, unit)
        self._pending += blocks.stream_header(b"SPAD", pad) + bytes(pad)

    def _block(self, header: bytes, streams: list[tuple[bytes, bytes]], unit: int) -> None:
        self._pending += header
        for kind, content in streams:
            self._pending += blocks.stream_header(kind, len(content)) + content
            self._pending += bytes(blocks.padding(self._position))
        self._space(unit)

    def _align_data(self) -> None:
        """Data begins on a physical block, and on the grid of the format's own blocks."""
        data = self._position + 2 * blocks.STREAM_HEADER_SIZE + 2
        pad = self._to_grid(data, self._unit)
        self._pending += blocks.stream_header(b"APAD", pad, blocks.ALIGN) + bytes(pad)

    def _log(self, file_id: int, part: LogPart) -> None:
        """One virtual log file; all log is in the first family, the others only say that it exists."""
        self._pending += blocks.log_block(self._address, self._next_control(), file_id, part)
        if part.data and self.family == 1:
            self._align_data()
            data = bytes(2) + part.data + bytes(-len(part.data) % EXTENT_SIZE)
            attributes = blocks.CSUM_FOLLOWS if self.backup.checksum else 0
            self._pending += blocks.stream_header(b"MQTL", len(data), attributes) + data
            self._pending += bytes(blocks.padding(self._position))
            if self.backup.checksum:
                checksum = stream_checksum(memoryview(data)[2:])
                self._pending += blocks.stream_header(b"CSUM", 4) + checksum.to_bytes(4, "little")
                self._pending += bytes(blocks.padding(self._position))
        self._space(FORMAT_BLOCK)

    def _configuration(self, kind: bytes, content: bytes, unit: int) -> None:
        header = blocks.descriptor(kind, bytes(4), address=self._address, control=self._next_control())
        self._block(header, [(b"MQCI", content)], unit)

    def _end_of_set(self, header: bytes, table: bytes) -> None:
        """The first ESET: OTCP pads up to the set map, which begins on the next format block."""
        self._pending += header
        pad = -(len(header) + blocks.STREAM_HEADER_SIZE) % FORMAT_BLOCK
        self._pending += blocks.stream_header(b"OTCP", pad) + bytes(pad)
        self._pending += blocks.stream_header(b"TSMP", len(table)) + table
        self._pending += bytes(blocks.padding(self._position))
        self._space(self._unit)

    def _filemark(self) -> None:
        mark = self._position
        if self.media.soft_filemarks is not None:  # the device keeps them
            self.cuts.append(len(self._pending))
            return
        self._pending += blocks.filemark(self._marks, self.media.block_size)
        self._marks = (mark, *self._marks)
