"""A database that is nowhere: seeded pages of any number, made where they are sent from and checked where they arrive.

A page is one of 128 random ones (SQL Server's data page with a single row) into which its number, the words that follow
from it, and the checksum are written. Each of its 16 sectors holds such a word, so a page or sector in the wrong place
never looks right. Checksums are linear, so that of a page follows from that of its pattern and the words written.

An extent may be changed: the number of the log record that did it goes into its words as well, and as the log sequence
number of the last change into the page headers, where SQL Server has it. So a page tells which state it is of, and a
restore can check it; the state of a database is one number for each extent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..mtf import DatabaseFile, page_checksums
from ..mtf.checksums import Words, rotate
from ..mtf.pages import CHECKSUM_FLAG, EXTENT_PAGES, HEADER_SIZE, PAGE_SIZE, TYPE_DATA, Pages, headers
from .database import DATA_FILE, Check, PageDamage, PageLedger, Versions, two_files, whole_extents
from .log import lsn_of, number_of

RECOVERY_MODELS = ("SIMPLE", "FULL", "BULK_LOGGED")
_PATTERNS = 128  # a power of 2; 1 MiB of them stays in the cache of a core
_ROW = 8000  # bytes of the row's fixed part
_WORDS = PAGE_SIZE // 4
_PLACE = 64  # of the words that depend on the page's number: u32 number 64 of each sector
_TURNS = np.arange(15, -1, -1, dtype=np.uint32)
_SECTORS = np.arange(16, dtype=np.uint32)
_UNCHANGED = np.array((1, 0, 0), np.uint32)  # words 10 to 12 of a page: the log sequence number of no change


@dataclass(frozen=True)
class Synthetic:
    """Seeded pages.

    Parameters
    ----------
    size : int
        Bytes; rounded up to whole extents of 64 KiB.
    seed : int
        From 0. A restore checks against the pages of this seed and this size.
    recovery_model : str
        ``"SIMPLE"``, ``"FULL"`` or ``"BULK_LOGGED"``, to begin with.
    freeze_limit : float
        As of a SQLite database.
    """

    size: int
    seed: int = 0
    recovery_model: str = "SIMPLE"
    freeze_limit: float = 300.0

    def __post_init__(self) -> None:
        if self.size < 0 or self.seed < 0:
            raise ValueError("size and seed are not negative")
        if self.recovery_model not in RECOVERY_MODELS:
            raise ValueError(f"{self.recovery_model!r} is no recovery model")
        if whole_extents(-(-self.size // PAGE_SIZE)) > 0xFFFFFFF8:
            raise ValueError("more pages than 32 bits can number")

    @property
    def pages(self) -> int:
        return whole_extents(-(-self.size // PAGE_SIZE))

    @property
    def address(self) -> str:
        return f"synthetic:{self.size}:{self.seed}"

    @property
    def identity(self) -> str:
        """What makes it the same database as another one of this kind: its pages."""
        return self.address

    def unchanged(self) -> Versions:
        """The state in which no extent was changed."""
        return np.zeros(self.pages // EXTENT_PAGES, np.uint32)

    def files(self, name: str, pages: int) -> tuple[DatabaseFile, ...]:
        return two_files(name, self.address, pages)

    def check(self, name: str) -> None:
        """There is nothing that could be missing."""

    def snapshot(self, name: str, check: Check, versions: Versions | None = None) -> SyntheticSnapshot:
        """`versions`: the state of each extent; it is not copied."""
        return SyntheticSnapshot(self, versions)

    def target(
        self, name: str, pages: int, *, replace: bool, versions: Versions | None = None, count: int | None = None
    ) -> SyntheticTarget:
        """Check what comes.

        Parameters
        ----------
        versions : array, optional
            The state that the pages are put upon, for a differential; not changed.
        count : int, optional
            Pages that come, where they are not all.
        """
        return SyntheticTarget(self, pages, versions, count)


class SyntheticSnapshot:
    """Makes the pages."""

    def __init__(self, source: Synthetic, versions: Versions | None = None) -> None:
        self.pages = source.pages
        self._versions = versions if versions is not None and versions.any() else None
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
        versions = None if self._versions is None else self._versions[ids // EXTENT_PAGES]
        self.make(pages, ids, versions if versions is not None and versions.any() else None)

    def make(self, pages: Pages, ids: Words, versions: Words | None) -> None:
        """Finish pages that hold their patterns; `versions`: of each page, None for the first ones."""
        words = self._words(ids, versions)
        out = pages.view("<u4").reshape(len(pages), _WORDS)
        out[:, 8] = ids
        out[:, _PLACE::128] = words
        turned = np.bitwise_xor.reduce(rotate(words, _TURNS), axis=1)
        header = ids
        if versions is not None:
            lsns = _lsn_words(versions)
            out[:, 10:13] = lsns
            header = ids ^ np.bitwise_xor.reduce(lsns, axis=1) ^ np.uint32(1)  # the patterns have 1:0:0
        out[:, 15] = self._checksums[ids % _PATTERNS] ^ turned ^ rotate(header, _TURNS[:1])

    def _words(self, ids: Words, versions: Words | None) -> Words:
        """One word for each sector of each page: the number of the sector, the seed and the version, scattered."""
        value = ids[:, None] * np.uint32(16) + _SECTORS
        value ^= self._seed
        if versions is not None:
            value ^= (versions * np.uint32(0x9E3779B1))[:, None]
        value = (value ^ value >> np.uint32(16)) * np.uint32(0x7FEB352D)
        value = (value ^ value >> np.uint32(15)) * np.uint32(0x846CA68B)
        return value ^ value >> np.uint32(16)

    def close(self) -> None:
        """Nothing is held."""


class SyntheticTarget:
    """Compares every page with the one that it must be, and notes which state it is of.

    Attributes
    ----------
    versions : array
        What the restored database is; complete after `finish`.
    """

    def __init__(
        self, source: Synthetic, pages: int, versions: Versions | None = None, count: int | None = None
    ) -> None:
        if pages != source.pages:
            raise PageDamage(0, f"the backup holds {pages} pages, the database {source.pages}")
        self.versions = source.unchanged() if versions is None else versions.copy()
        self._known = np.zeros(len(self.versions), bool)  # extents of which a page came
        self._ledger = PageLedger(pages, count)
        self._snapshot = SyntheticSnapshot(source)
        self._expected: Pages = np.empty((0, PAGE_SIZE), np.uint8)

    def accept(self, pages: Pages) -> None:
        pages, ids = self._ledger.admit(pages)
        start = 0
        while start < len(ids):
            # Runs of consecutive pages; nearly always one.
            breaks = np.flatnonzero(np.diff(ids[start:].astype(np.int64)) != 1)
            stop = start + int(breaks[0]) + 1 if len(breaks) else len(ids)
            self._compare(pages[start:stop], ids[start:stop])
            start = stop

    def _compare(self, pages: Pages, ids: Words) -> None:
        first, count = int(ids[0]), len(ids)
        versions = _versions_in(pages)
        self._note(first, count, versions)
        if len(self._expected) < count:
            self._expected = np.empty((count, PAGE_SIZE), np.uint8)
        expected = self._expected[:count]
        self._snapshot.fill(expected, first)
        if versions is not None:
            self._snapshot.make(expected, ids, versions)
        equal = pages.view("<u8") == expected.view("<u8")
        if not equal.all():
            wrong = int(np.argmin(equal.all(axis=1)))
            raise PageDamage(first + wrong, "the page does not hold what was backed up")

    def _note(self, first: int, count: int, versions: Words | None) -> None:
        """Note which state extents are of: all their pages must agree."""
        begin, end = first // EXTENT_PAGES, (first + count - 1) // EXTENT_PAGES + 1
        known, noted = self._known[begin:end], self.versions[begin:end]
        if versions is None:
            torn = known & (noted != 0)
            noted[:] = 0
        else:
            extents = np.arange(first, first + count) // EXTENT_PAGES - begin
            earlier, before = known.copy(), noted.copy()
            noted[extents] = versions
            torn = earlier & (before != noted)
            np.logical_or.at(torn, extents, noted[extents] != versions)
        known[:] = True
        if torn.any():
            raise PageDamage((begin + int(np.argmax(torn))) * EXTENT_PAGES, "the extent's pages are of several states")

    def finish(self) -> None:
        self._ledger.close()

    def abandon(self) -> None:
        """Nothing was kept."""


# ---- versions: 0 for pages that were never changed, else the number of the record that did it


def _lsn_words(versions: Words) -> Words:
    """The words 10 to 12 of page headers."""
    words = np.zeros((len(versions), 3), np.uint32)
    words[:, 0] = 1
    for version in np.unique(versions):
        if version:
            words[versions == version] = lsn_of(int(version))
    return words


def _versions_in(pages: Pages) -> Words | None:
    """The version of each page; None where all are as they were at first."""
    words = pages.view("<u4").reshape(len(pages), _WORDS)[:, 10:13]
    if (words == _UNCHANGED).all():
        return None
    versions = np.zeros(len(pages), np.uint32)
    for place, lsn in enumerate(words.tolist()):
        if lsn != [1, 0, 0]:
            try:
                number = number_of(tuple(lsn))
            except ValueError as error:
                raise PageDamage(int(headers(pages)["page_id"][place]), str(error)) from error
            if number > 0xFFFFFFFF:
                raise PageDamage(int(headers(pages)["page_id"][place]), "a log sequence number beyond any")
            versions[place] = number
    return versions
