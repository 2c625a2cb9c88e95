"""A database that is nowhere: seeded pages of any number, made where they are sent from and checked where they arrive.

A page is one of 128 random ones (SQL Server's data page with a single row) into which its number, the words that follow
from it, and the checksum are written. Each of its 16 sectors holds such a word, so a page or sector in the wrong place
never looks right. Checksums are linear, so that of a page follows from that of its pattern and the words written.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..mtf import DatabaseFile, page_checksums
from ..mtf.checksums import rotate
from ..mtf.pages import CHECKSUM_FLAG, HEADER_SIZE, PAGE_SIZE, TYPE_DATA, Pages, headers
from .database import DATA_FILE, Check, PageDamage, PageLedger, two_files, whole_extents

_PATTERNS = 128  # a power of 2; 1 MiB of them stays in the cache of a core
_ROW = 8000  # bytes of the row's fixed part
_WORDS = PAGE_SIZE // 4
_PLACE = 64  # of the words that depend on the page's number: u32 number 64 of each sector
_TURNS = np.arange(15, -1, -1, dtype=np.uint32)
_SECTORS = np.arange(16, dtype=np.uint32)


@dataclass(frozen=True)
class Synthetic:
    """Seeded pages.

    Parameters
    ----------
    size : int
        Bytes; rounded up to whole extents of 64 KiB.
    seed : int
        From 0. A restore checks against the pages of this seed and this size.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 0 or self.seed < 0:
            raise ValueError("size and seed are not negative")
        if whole_extents(-(-self.size // PAGE_SIZE)) > 0xFFFFFFF8:
            raise ValueError("more pages than 32 bits can number")

    @property
    def pages(self) -> int:
        return whole_extents(-(-self.size // PAGE_SIZE))

    def files(self, name: str, pages: int) -> tuple[DatabaseFile, ...]:
        return two_files(name, f"synthetic:{self.size}:{self.seed}", pages)

    def check(self, name: str) -> None:
        """There is nothing that could be missing."""

    def snapshot(self, name: str, check: Check) -> SyntheticSnapshot:
        return SyntheticSnapshot(self)

    def target(self, name: str, pages: int, *, replace: bool) -> SyntheticTarget:
        return SyntheticTarget(self, pages)


class SyntheticSnapshot:
    """Makes the pages."""

    def __init__(self, source: Synthetic) -> None:
        self.pages = source.pages
        self._seed = np.uint32((source.seed ^ source.seed >> 32) & 0xFFFFFFFF)
        random = np.random.PCG64(source.seed).random_raw(_PATTERNS * PAGE_SIZE // 8)
        self._patterns: Pages = random.astype("<u8").view(np.uint8).reshape(_PATTERNS, PAGE_SIZE)
        self._patterns[:, :HEADER_SIZE] = 0
        self._patterns[:, HEADER_SIZE + _ROW :] = 0
        header = headers(self._patterns)
        header["version"] = 1
        header["type"] = TYPE_DATA
        header["flag_bits"] = CHECKSUM_FLAG
        header["row_length"] = _ROW
        header["slots"] = 1
        header["object_id"] = 100
        header["free_offset"] = HEADER_SIZE + _ROW + 3
        header["free_bytes"] = PAGE_SIZE - (HEADER_SIZE + _ROW + 3) - 2
        header["file_id"] = DATA_FILE
        header["lsn_file"] = 1
        # The row: status with null bitmap, length of the fixed part; behind it one column, not null. Last, its slot.
        self._patterns[:, HEADER_SIZE : HEADER_SIZE + 4] = (0x10, 0, _ROW & 0xFF, _ROW >> 8)
        self._patterns[:, HEADER_SIZE + _ROW] = 1
        self._patterns[:, PAGE_SIZE - 2] = HEADER_SIZE
        words = self._patterns.view("<u4")
        words[:, _PLACE::128] = 0
        self._checksums = page_checksums(self._patterns)

    def fill(self, pages: Pages, first: int) -> None:
        """Make pages from number `first` on; `first` is below 2**32."""
        count = len(pages)
        done = 0
        while done < count:
            row = (first + done) % _PATTERNS
            part = min(_PATTERNS - row, count - done)
            pages[done : done + part] = self._patterns[row : row + part]
            done += part
        ids = np.arange(first, first + count, dtype=np.uint32)
        words = self._words(ids)
        out = pages.view("<u4").reshape(count, _WORDS)
        out[:, 8] = ids
        out[:, _PLACE::128] = words
        turned = np.bitwise_xor.reduce(rotate(words, _TURNS), axis=1)
        out[:, 15] = self._checksums[ids % _PATTERNS] ^ turned ^ rotate(ids, _TURNS[:1])

    def _words(self, ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        """One word for each sector of each page: the number of the sector and the seed, scattered."""
        value = ids[:, None] * np.uint32(16) + _SECTORS
        value ^= self._seed
        value = (value ^ value >> np.uint32(16)) * np.uint32(0x7FEB352D)
        value = (value ^ value >> np.uint32(15)) * np.uint32(0x846CA68B)
        return value ^ value >> np.uint32(16)

    def close(self) -> None:
        """Nothing is held."""


class SyntheticTarget:
    """Compares every page with the one that it must be."""

    def __init__(self, source: Synthetic, pages: int) -> None:
        if pages != source.pages:
            raise PageDamage(0, f"the backup holds {pages} pages, the database {source.pages}")
        self._ledger = PageLedger(pages)
        self._snapshot = SyntheticSnapshot(source)
        self._expected: Pages = np.empty((0, PAGE_SIZE), np.uint8)

    def accept(self, pages: Pages) -> None:
        pages, ids = self._ledger.admit(pages)
        start = 0
        while start < len(ids):
            # Runs of consecutive pages; nearly always one.
            breaks = np.flatnonzero(np.diff(ids[start:].astype(np.int64)) != 1)
            stop = start + int(breaks[0]) + 1 if len(breaks) else len(ids)
            self._compare(pages[start:stop], int(ids[start]))
            start = stop

    def _compare(self, pages: Pages, first: int) -> None:
        if len(self._expected) < len(pages):
            self._expected = np.empty((len(pages), PAGE_SIZE), np.uint8)
        expected = self._expected[: len(pages)]
        self._snapshot.fill(expected, first)
        equal = pages.view("<u8") == expected.view("<u8")
        if not equal.all():
            wrong = int(np.argmin(equal.all(axis=1)))
            raise PageDamage(first + wrong, "the page does not hold what was backed up")

    def finish(self) -> None:
        self._ledger.close()

    def abandon(self) -> None:
        """Nothing was kept."""
