"""What the stand-in asks of a database: a snapshot to read from, a target to restore into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..mtf import DatabaseFile, page_checksums
from ..mtf.pages import CHECKSUM_FLAG, EXTENT_PAGES, PAGE_SIZE, Pages, headers, is_fill

DATA_FILE = 1  # file id of the data file; 2 is the log

Check = Callable[[], None]
Versions = npt.NDArray[np.uint32]  # of each extent: 0, or the number of the log record that changed it last


class DatabaseError(Exception):
    """A database cannot be backed up or restored; carries the message SQL Server would give.

    Parameters
    ----------
    number : int
        Of the message.
    args : object
        What its text is filled with.
    further : tuple of DatabaseError, optional
        Messages that come behind it.
    """

    def __init__(self, number: int, *args: object, further: tuple[DatabaseError, ...] = ()) -> None:
        super().__init__(number, *args)
        self.number = number
        self.further = further


class PageDamage(Exception):  # a finding, turned into message 3183
    """A page of the stream is not what it ought to be."""

    def __init__(self, page_id: int, what: str) -> None:
        super().__init__(page_id, what)
        self.page_id = page_id
        self.what = what

    def __str__(self) -> str:
        return f"page ({DATA_FILE}:{self.page_id}): {self.what}"


class Snapshot(Protocol):
    """The state of a database at one moment, as pages."""

    @property
    def pages(self) -> int:
        """Pages of the data file; a multiple of 8."""

    def fill(self, pages: Pages, first: int) -> None:
        """Make `len(pages)` finished pages from page `first` on, in place."""

    def close(self) -> None: ...


class Target(Protocol):
    """Where the pages of a restore go, in any order."""

    def accept(self, pages: Pages) -> None:
        """Take pages that a family holds in sequence; the array is valid during the call only. Raises `PageDamage`."""

    def finish(self) -> None:
        """All families ended well: check that nothing is missing and make it the database. Raises `PageDamage`."""

    def abandon(self) -> None:
        """The restore failed: leave what was there before. Also after a failed `finish`."""


class PagedDatabase(Protocol):
    """A database whose backup is made of pages."""

    def files(self, name: str, pages: int) -> tuple[DatabaseFile, ...]: ...

    def check(self, name: str) -> None:
        """Refuse early what can never be backed up. Raises `DatabaseError`."""

    def snapshot(self, name: str, check: Check) -> Snapshot:
        """`check` is called every now and then while it takes long; it raises to end the wait."""

    def target(self, name: str, pages: int, *, replace: bool) -> Target:
        """`pages`: what the backup's configuration announces. Raises `DatabaseError`."""


class PageLedger:
    """Sees that each page comes exactly once, intact; one bit per page.

    Parameters
    ----------
    pages : int
        Of the file; a multiple of 8.
    announced : int, optional
        How many of them come; all where not given.
    """

    def __init__(self, pages: int, announced: int | None = None) -> None:
        if pages % EXTENT_PAGES:
            raise ValueError(f"{pages} pages are no whole extents")
        self.pages = pages
        self._announced = pages if announced is None else announced
        self._seen = np.zeros(pages // EXTENT_PAGES, np.uint8)
        self._count = 0

    def admit(self, pages: Pages) -> tuple[Pages, npt.NDArray[np.uint32]]:
        """Check headers and checksums; drop fill pages.

        Returns
        -------
        pages, ids
            The pages that count, and their numbers.
        """
        fill = is_fill(pages)
        if fill.any():
            pages = pages[~fill]
        header = headers(pages)
        ids = header["page_id"]
        good = (header["version"] == 1) & (header["file_id"] == DATA_FILE) & (ids < self.pages)
        good &= (header["flag_bits"] & CHECKSUM_FLAG) != 0
        if not good.all():
            bad = int(np.argmin(good))
            raise PageDamage(int(ids[bad]), "the header is not that of a page of this backup")
        wrong = header["checksum"] != page_checksums(pages)
        if wrong.any():
            raise PageDamage(int(ids[np.argmax(wrong)]), "the page checksum does not match")
        self._note(ids)
        return pages, ids

    def _note(self, ids: npt.NDArray[np.uint32]) -> None:
        count = len(ids)
        if not count:
            return
        first = int(ids[0])
        whole = first % EXTENT_PAGES == 0 and count % EXTENT_PAGES == 0
        if whole and bool((ids == np.arange(first, first + count, dtype=np.uint32)).all()):
            extents = self._seen[first // EXTENT_PAGES : (first + count) // EXTENT_PAGES]
            if extents.any():
                raise PageDamage(first + int(np.argmax(extents != 0)) * EXTENT_PAGES, "the page comes twice")
            extents[:] = 0xFF
        else:
            for page in ids.tolist():
                bit = 1 << page % EXTENT_PAGES
                if self._seen[page // EXTENT_PAGES] & bit:
                    raise PageDamage(page, "the page comes twice")
                self._seen[page // EXTENT_PAGES] |= bit
        self._count += count

    def close(self) -> None:
        """Raise `PageDamage` for the first page that did not come."""
        if self._count == self._announced:
            return
        if self._announced != self.pages:
            raise PageDamage(0, f"{self._count} pages came of {self._announced} announced")
        extent = int(np.argmax(self._seen != 0xFF))
        bits = int(self._seen[extent])
        missing = next(page for page in range(EXTENT_PAGES) if not bits >> page & 1)
        raise PageDamage(extent * EXTENT_PAGES + missing, "the page is missing")


def whole_extents(pages: int) -> int:
    """The number of pages that whole extents make of it, at least one extent."""
    return max(EXTENT_PAGES, -(-pages // EXTENT_PAGES) * EXTENT_PAGES)


def two_files(name: str, path: str, pages: int) -> tuple[DatabaseFile, ...]:
    """A data file and an empty log, as every database of SQL Server has them at least."""
    return (
        DatabaseFile(DATA_FILE, name, path, pages * PAGE_SIZE, pages),
        DatabaseFile(2, f"{name}_log", f"{path}_log", 0, 0, is_log=True),
    )
