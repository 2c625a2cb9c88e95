"""A snapshot as the streams of a stripe set: which extents go to which family, and what lies around them.

All families hold the same number of extents, fixed in advance; whoever is ready takes the next ones, and fill extents
even out the end. So says every real stripe set, and so each stream can announce its length before its first page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..mtf import (
    EXTENT_PAGES,
    PAGE_SIZE,
    BackupSet,
    FamilyInfo,
    FamilyReader,
    FamilyWriter,
    LogPart,
    MediaSet,
    fill_pages,
    sector_xors,
)
from ..mtf.pages import Pages
from ..mtf.writer import label
from .database import Snapshot
from .lane import Consumer, Filemark
from .positioning import Place
from .replay import ReplaySource, ReplayTarget

if TYPE_CHECKING:
    from .mounting import Mounted

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Metadata:
    """Bytes of the stream that are no pages."""

    data: bytes
    payload = 0

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Run:
    """Pages of the stream; `fill` ones stand for nothing."""

    first: int
    count: int
    fill: bool

    @property
    def size(self) -> int:
        return self.count * PAGE_SIZE

    @property
    def payload(self) -> int:
        return 0 if self.fill else self.size


class NoPages:
    """The snapshot of a log backup."""

    pages = 0

    def fill(self, pages: Pages, first: int) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is held."""


class BackupStripes:
    """Deals the extents of a snapshot to the families of a media set.

    Parameters
    ----------
    snapshot : Snapshot
    media : MediaSet
    backup : BackupSet
    transfer_size : int
        Most bytes of one `Run`; a multiple of 65536.
    metadata_size : int
        Most bytes of one `Metadata`; a multiple of the block size.
    now : callable
        The time, for the end of the backup.
    extents : list of (int, int), optional
        First one and number of those that go into the backup, ascending; all where not given.
    mounted : Mounted, optional
        Where on its medium the set of each device goes; new media where not given.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        media: MediaSet,
        backup: BackupSet,
        transfer_size: int,
        metadata_size: int = 65536,
        now: Callable[[], datetime] = datetime.now,
        extents: list[tuple[int, int]] | None = None,
        mounted: Mounted | None = None,
    ) -> None:
        self.media = media
        self._snapshot = snapshot
        self._backup = backup
        self._transfer = transfer_size // (EXTENT_PAGES * PAGE_SIZE)
        self._metadata_size = metadata_size
        self._now = now
        # Runs of extents that were not dealt yet.
        self._runs = deque(extents if extents is not None else [(0, snapshot.pages // EXTENT_PAGES)])
        self.quota = -(-sum(count for _, count in self._runs) // media.families)
        self._left = [self.quota] * media.families
        self._writers = []
        for number in range(media.families):
            place = mounted.places[number] if mounted is not None else Place()
            family = mounted.families[number] if mounted is not None else number + 1
            self._writers.append(
                FamilyWriter(media, backup, family, self.quota, place.start, place.marks, place.address)
            )
        self._metadata: list[deque[Metadata | Filemark]] = [deque() for _ in self._writers]
        self._begun = [False] * media.families
        self._ended = [False] * media.families

    def family(self, number: int) -> int:
        return self._writers[number].family

    def label(self, number: int, sequence: int) -> bytes:
        """What begins a further volume."""
        return label(self.media, self.family(number), self._backup.started, sequence)

    def continuation(self, number: int, place: int, address: int) -> bytes:
        """What is repeated on it."""
        return self._writers[number].continuation(place, address)

    def next(self, number: int) -> Metadata | Run | Filemark | None:
        """What family `number` (from 0) sends next; None: that was all."""
        waiting = self._metadata[number]
        if waiting:
            return waiting.popleft()
        if not self._begun[number]:
            self._begun[number] = True
            beginning = self._writers[number].begin()
            if beginning:
                return self._cut(number, beginning)
        if self._left[number]:
            first, rest = self._runs[0] if self._runs else (0, 0)
            count = min(self._transfer, self._left[number], rest or self._transfer)
            self._left[number] -= count
            if not rest:
                return Run(0, count * EXTENT_PAGES, True)
            self._runs[0] = (first + count, rest - count)
            if rest == count:
                self._runs.popleft()
            return Run(first * EXTENT_PAGES, count * EXTENT_PAGES, False)
        if not self._ended[number]:
            self._ended[number] = True
            return self._cut(number, self._writers[number].end(self._now()))
        return None

    def _cut(self, number: int, data: bytes) -> Metadata | Run | Filemark | None:
        """Queue metadata in pieces, with the filemarks that the device writes; returns the first of them."""
        step, start, queue = self._metadata_size, 0, self._metadata[number]
        for cut in self._writers[number].cuts:
            queue.extend(Metadata(data[at : min(at + step, cut)]) for at in range(start, cut, step))
            queue.append(Filemark())
            start = cut
        queue.extend(Metadata(data[at : at + step]) for at in range(start, len(data), step))
        return self.next(number)

    def make(self, number: int, item: Metadata | Run, data: Bytes) -> None:
        """Make what `next` announced, in the same order, where it is sent from."""
        if isinstance(item, Metadata):
            data[:] = np.frombuffer(item.data, np.uint8)
            return
        pages = data.reshape(-1, PAGE_SIZE)
        if item.fill:
            fill_pages(pages)
        else:
            self._snapshot.fill(pages, item.first)
        self._writers[number].pages(item.count, sector_xors(pages) if self._backup.checksum else None)


class RestoreStripes(Consumer):
    """Reads the families of a media set.

    Parameters
    ----------
    families : int
        Devices of the statement.
    block_size : int
        Bytes.
    on_family : callable
        Called with the number of a device (from 0) and its `FamilyInfo` before any of its pages; raises if it does not
        belong to the others.
    on_pages, on_log, on_end, position, skims
        See `FamilyReader`.
    """

    def __init__(
        self,
        families: int,
        block_size: int,
        on_family: Callable[[int, FamilyInfo], None],
        on_pages: Callable[[Pages], None],
        on_log: Callable[[LogPart, Pages], None] | None = None,
        on_end: Callable[[FamilyInfo], None] | None = None,
        position: int | None = 1,
        skims: bool = False,
    ) -> None:
        self._counted = 0
        self._on_pages = on_pages
        self.current = 0  # the device whose bytes are being taken
        self.readers = [
            FamilyReader(
                block_size, lambda info, number=number: on_family(number, info), self._pages,  # type: ignore[misc]
                on_log, on_end, position, skims=skims,
            )
            for number in range(families)
        ]  # fmt: skip

    def _pages(self, pages: Pages) -> None:
        self._on_pages(pages)
        self._counted += pages.nbytes

    def stop(self) -> None:
        """Want nothing more."""
        for reader in self.readers:
            reader.stop()

    def wanted(self, number: int) -> int:
        return self.readers[number].wanted

    def accept(self, number: int, data: Bytes) -> int:
        self.current = number
        self._counted = 0
        self.readers[number].feed(memoryview(data))
        return self._counted

    def end(self, number: int) -> None:
        self.current = number
        self.readers[number].end()

    def open(self, *, keeps_marks: bool) -> None:
        for reader in self.readers:
            reader.keeps_marks = keeps_marks

    def at_mark(self, number: int) -> bool:
        return self.readers[number].at_mark

    def mark(self, number: int) -> None:
        self.current = number
        self.readers[number].mark()

    def skippable(self, number: int) -> int:
        return self.readers[number].skippable

    def skip(self, number: int, count: int) -> None:
        self.readers[number].skip(count)

    def info(self, number: int) -> FamilyInfo:
        return self.readers[number].info

    def continues(self, number: int) -> bool:
        return self.readers[number].within_set

    def go_to(self, number: int, file: int, place: int, marks: Sequence[int]) -> None:
        self.readers[number].go_to(file, place, marks)


@dataclass(frozen=True)
class _Piece:
    offset: int
    size: int

    @property
    def payload(self) -> int:
        return self.size


class ReplayStreams:
    """The files of a replay as what devices send."""

    def __init__(self, source: ReplaySource, transfer_size: int) -> None:
        self._source = source
        self._transfer_size = transfer_size
        self._places = [0] * len(source.sizes)

    def next(self, number: int) -> _Piece | None:
        place = self._places[number]
        size = min(self._transfer_size, self._source.sizes[number] - place)
        self._places[number] = place + size
        return _Piece(place, size) if size else None

    def make(self, number: int, item: _Piece, data: Bytes) -> None:
        self._source.read(number, item.offset, data)


class ReplayReturn(Consumer):
    """What comes back for the files of a replay; read until each device says that it has no more."""

    def __init__(self, target: ReplayTarget, transfer_size: int) -> None:
        self._target = target
        self._wanted = 4 * transfer_size
        self.current = 0

    def wanted(self, number: int) -> int:
        return self._wanted

    def accept(self, number: int, data: Bytes) -> int:
        self.current = number
        self._target.accept(number, data)
        return len(data)

    def end(self, number: int) -> None:
        """Any end is right; whether all came is seen at the finish."""
