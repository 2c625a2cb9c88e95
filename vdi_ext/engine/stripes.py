"""A snapshot as the streams of a stripe set: which extents go to which family, and what lies around them.

All families hold the same number of extents, fixed in advance; whoever is ready takes the next ones, and fill extents
even out the end. So says every real stripe set, and so each stream can announce its length before its first page.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from ..mtf import EXTENT_PAGES, BackupSet, FamilyInfo, FamilyReader, FamilyWriter, MediaSet, fill_pages, sector_xors
from ..mtf.pages import Pages
from .database import Snapshot


@dataclass(frozen=True)
class Metadata:
    """Bytes of the stream that are no pages."""

    data: bytes


@dataclass(frozen=True)
class Run:
    """Pages of the stream, to be made in place by `BackupStripes.make`."""

    first: int
    count: int
    fill: bool


class BackupStripes:
    """Deals the extents of a snapshot to the families of a media set.

    Parameters
    ----------
    snapshot : Snapshot
    media : MediaSet
    backup : BackupSet
    transfer_pages : int
        Most pages of one `Run`; a multiple of 8.
    now : callable
        The time, for the end of the backup.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        media: MediaSet,
        backup: BackupSet,
        transfer_pages: int,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._snapshot = snapshot
        self._backup = backup
        self._transfer = transfer_pages // EXTENT_PAGES
        self._now = now
        self._extents = snapshot.pages // EXTENT_PAGES
        self.quota = -(-self._extents // media.families)
        self._dealt = 0
        self._left = [self.quota] * media.families
        self._writers = [
            FamilyWriter(media, backup, number + 1, self.quota) for number in range(media.families)
        ]
        self._begun = [False] * media.families
        self._ended = [False] * media.families

    def next(self, family: int) -> Metadata | Run | None:
        """What family number `family` (from 0) sends next; None: that was all."""
        writer = self._writers[family]
        if not self._begun[family]:
            self._begun[family] = True
            return Metadata(writer.begin())
        if self._left[family]:
            rest = self._extents - self._dealt
            count = min(self._transfer, self._left[family], rest or self._transfer)
            self._left[family] -= count
            if not rest:
                return Run(0, count * EXTENT_PAGES, True)
            first = self._dealt
            self._dealt += count
            return Run(first * EXTENT_PAGES, count * EXTENT_PAGES, False)
        if not self._ended[family]:
            self._ended[family] = True
            return Metadata(writer.end(self._now()))
        return None

    def make(self, family: int, run: Run, pages: Pages) -> None:
        """Make the pages of a run where they are sent from; in the order of `next`."""
        if run.fill:
            fill_pages(pages)
        else:
            self._snapshot.fill(pages, run.first)
        self._writers[family].pages(run.count, sector_xors(pages) if self._backup.checksum else None)


class RestoreStripes:
    """Reads the families of a media set and sees that they belong together.

    Parameters
    ----------
    families : int
        Devices of the statement.
    block_size : int
        Bytes.
    on_start : callable
        Called with a `FamilyInfo` once, when the first family has told what the set holds; before any page.
    on_pages : callable
        See `FamilyReader`.
    on_mismatch : callable
        Called with the number of a device (from 0), its `FamilyInfo`, and that of the first; raises if they do not
        belong together.
    """

    def __init__(
        self,
        families: int,
        block_size: int,
        on_start: Callable[[FamilyInfo], None],
        on_pages: Callable[[Pages], None],
        on_family: Callable[[int, FamilyInfo], None],
    ) -> None:
        self._first: FamilyInfo | None = None
        self._on_start = on_start
        self._on_family = on_family
        self.readers = [
            FamilyReader(block_size, lambda info, number=number: self._start(number, info), on_pages)  # type: ignore[misc]
            for number in range(families)
        ]

    def _start(self, number: int, info: FamilyInfo) -> None:
        self._on_family(number, info)
        if self._first is None:
            self._first = info
            self._on_start(info)
