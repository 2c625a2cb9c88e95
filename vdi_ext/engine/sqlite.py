"""A live SQLite file as a database of the stand-in.

Backup. One read transaction is the snapshot: in WAL mode writers go on, in rollback mode their commits wait. SQLite's
own backup interface copies it, inside that transaction, into a scratch file that has lost its name before its first
byte is written, so that a kill leaves nothing; then the transaction ends. The pages are read from there straight into
the shared buffers. (Reading the file itself would be wrong in WAL mode, and closing a descriptor of it would drop the
POSIX locks of every connection of this process.) Memory does not depend on the size; disk space of the database's size
is needed beside it, and writers in rollback mode wait for a copy on disk, never for the client.

Layout of the pages, all of file 1:

    page 0       type 15; at 100: "vdi_ext sqlite 1", u64 length of the SQLite file in bytes
    page 1 + n   type 3 with one record at 96 (status 8, 0, u16 8054, u64 0, u16 3); at 110: bytes 8040 n ... of it
    after them   type 3 without a record, up to a whole extent

Restore. The file grows beside the old one under another name and takes its place when everything was checked. An old
database is locked meanwhile as SQLite locks it, so a connected writer is an error and not a loss.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
import tempfile
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import VDError
from ..mtf import DatabaseFile, seal_pages
from ..mtf.pages import (
    CHECKSUM_FLAG,
    HEADER_SIZE,
    PAGE_SIZE,
    TYPE_FILE_HEADER,
    TYPE_TEXT,
    Pages,
    headers,
)
from .database import DATA_FILE, Check, DatabaseError, PageDamage, PageLedger, two_files, whole_extents

CONTENT = 8040  # bytes of the file in a page: what SQL Server puts into a page of a large object
_RECORD = struct.pack("<BBHQH", 8, 0, 14 + CONTENT, 0, 3)
_PLACE = HEADER_SIZE + len(_RECORD)
_MAGIC = b"vdi_ext sqlite 1"
_SUFFIX = ".restoring"
_COPY_PAGES = 1024  # of SQLite, between two looks at whether to go on


@dataclass(frozen=True)
class Sqlite:
    """A SQLite file.

    Parameters
    ----------
    path : str
        Of the database.
    busy_timeout : float
        Seconds to wait for a lock while others commit.
    freeze_limit : float
        Seconds after which a frozen database goes on by itself, and its BACKUP WITH SNAPSHOT fails.
    """

    path: str
    busy_timeout: float = 60.0
    freeze_limit: float = 300.0

    def files(self, name: str, pages: int) -> tuple[DatabaseFile, ...]:
        return two_files(name, os.path.abspath(self.path), pages)

    def check(self, name: str) -> None:
        if not os.path.isfile(self.path):
            raise DatabaseError(911, name)

    def snapshot(self, name: str, check: Check) -> SqliteSnapshot:
        try:
            fd = _copy(self.path, self.busy_timeout, check)
            return SqliteSnapshot(fd, os.fstat(fd).st_size)
        except VDError:  # some are OSErrors as well
            raise
        except (sqlite3.Error, OSError) as error:
            raise DatabaseError(3271, self.path, str(error)) from error

    def target(self, name: str, pages: int, *, replace: bool) -> SqliteTarget:
        if not replace and os.path.exists(self.path) and os.path.getsize(self.path):
            raise DatabaseError(3159, name)
        return SqliteTarget(self.path, pages)


def content_pages(length: int) -> int:
    """Pages of a backup of a SQLite file of `length` bytes."""
    return whole_extents(1 + -(-length // CONTENT))


class SqliteSnapshot:
    """A copy of the database at one moment, in a file without a name.

    Parameters
    ----------
    fd : int
        Of the copy; closed by `close`. Only what is filled is read.
    length : int
        Bytes of the database.
    """

    def __init__(self, fd: int, length: int) -> None:
        self._fd = fd
        self._length = length
        self.pages = content_pages(length)

    def fill(self, pages: Pages, first: int) -> None:
        count = len(pages)
        pages[:, :_PLACE] = 0
        pages[:, _PLACE + CONTENT :] = 0
        header = headers(pages)
        header["version"] = 1
        header["type"] = TYPE_TEXT
        header["flag_bits"] = CHECKSUM_FLAG
        header["index_id"] = 0xFF
        header["slots"] = 1
        header["object_id"] = 100
        header["free_bytes"] = PAGE_SIZE - _PLACE - CONTENT - 2
        header["free_offset"] = _PLACE + CONTENT
        header["page_id"] = np.arange(first, first + count, dtype=np.uint32)
        header["file_id"] = DATA_FILE
        header["lsn_file"] = 1
        pages[:, HEADER_SIZE:_PLACE] = np.frombuffer(_RECORD, np.uint8)
        pages[:, PAGE_SIZE - 2] = HEADER_SIZE
        skip = 1 if first == 0 else 0
        if skip:
            self._file_header(pages[0])
        used = min(count, max(skip, 1 - first + -(-self._length // CONTENT)))
        for page in pages[used:]:
            _empty(page)
        if used > skip:
            self._read(pages[skip:used], first + skip - 1)
        seal_pages(pages)

    def _file_header(self, page: Pages) -> None:
        page[HEADER_SIZE:] = 0
        content = struct.pack("<BBH", 0x10, 0, 4 + len(_MAGIC) + 8) + _MAGIC + struct.pack("<Q", self._length)
        page[HEADER_SIZE : HEADER_SIZE + len(content)] = np.frombuffer(content, np.uint8)
        page[PAGE_SIZE - 2] = HEADER_SIZE
        header = headers(page)
        header["type"] = TYPE_FILE_HEADER
        header["free_offset"] = HEADER_SIZE + len(content)
        header["free_bytes"] = PAGE_SIZE - HEADER_SIZE - len(content) - 2

    def _read(self, pages: Pages, number: int) -> None:
        """Read the content of pages; `number`: of the first, counted from the beginning of the file."""
        offset = number * CONTENT
        wanted = min(len(pages) * CONTENT, self._length - offset)
        if wanted < len(pages) * CONTENT:
            pages[-1, _PLACE : _PLACE + CONTENT] = 0
        _transfer(os.preadv, self._fd, contents(pages), offset, wanted)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SqliteTarget:
    """A SQLite file that grows beside the database and replaces it at the end."""

    def __init__(self, path: str, pages: int) -> None:
        self._path = path
        self._length = -1
        self._ledger = PageLedger(pages)
        self._old: LockedDatabase | None = None
        self._fd = _open_alone(path + _SUFFIX)
        try:
            self._old = LockedDatabase(path) if os.path.exists(path) else None
            space = os.statvfs(self._fd)
            if space.f_bavail * space.f_frsize < pages * CONTENT:
                raise DatabaseError(3257, path, pages * CONTENT, space.f_bavail * space.f_frsize)
        except BaseException:
            self.abandon()
            raise

    def accept(self, pages: Pages) -> None:
        pages, ids = self._ledger.admit(pages)
        start = 0
        while start < len(ids):
            if ids[start] == 0:
                self._length = described_length(pages[start], self._ledger.pages)
                start += 1
                continue
            breaks = np.flatnonzero(np.diff(ids[start:].astype(np.int64)) != 1)
            stop = start + int(breaks[0]) + 1 if len(breaks) else len(ids)
            run = pages[start:stop]
            wrong = headers(run)["type"] != TYPE_TEXT
            if wrong.any():
                raise PageDamage(int(ids[start + int(np.argmax(wrong))]), "the page is of another type")
            try:
                _transfer(os.pwritev, self._fd, contents(run), (int(ids[start]) - 1) * CONTENT, len(run) * CONTENT)
            except OSError as error:
                raise DatabaseError(3271, self._path, str(error)) from error
            start = stop

    def finish(self) -> None:
        self._ledger.close()
        try:
            os.ftruncate(self._fd, self._length)
            _check_header(self._fd, self._length)
            os.fsync(self._fd)
            if self._old is not None:
                self._old.before_rename()
            os.rename(self._path + _SUFFIX, self._path)
            # At once: closing a descriptor drops the POSIX locks that this process takes on the file meanwhile.
            os.close(self._fd)
            self._fd = -1
            if self._old is not None:
                self._old.close()
                self._old = None
            directory = os.open(os.path.dirname(os.path.abspath(self._path)), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise DatabaseError(3271, self._path, str(error)) from error

    def abandon(self) -> None:
        if self._old is not None:
            self._old.restore()
            self._old = None
        if self._fd >= 0:
            # Under the lock, so that nobody else's file is removed.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + _SUFFIX)
            os.close(self._fd)
            self._fd = -1


# ---- pages and files


def described_length(page: Pages, pages: int) -> int:
    """Bytes of the SQLite file, as page 0 of a backup of `pages` pages says. Raises `PageDamage`."""
    content = page[HEADER_SIZE + 4 :].tobytes()
    length: int
    length, = struct.unpack_from("<Q", content, len(_MAGIC))
    if page[1] != TYPE_FILE_HEADER or not content.startswith(_MAGIC):
        raise PageDamage(0, "the backup is not one of a SQLite database")
    if content_pages(length) != pages:
        raise PageDamage(0, f"a file of {length} bytes does not fill {pages} pages")
    return length


def contents(pages: Pages) -> list[memoryview]:
    """What each page holds of the SQLite file."""
    whole = memoryview(pages.reshape(-1))
    return [whole[at : at + CONTENT] for at in range(_PLACE, len(whole), PAGE_SIZE)]


def _transfer(call: object, fd: int, parts: Sequence[memoryview], offset: int, wanted: int) -> None:
    """preadv or pwritev until `wanted` bytes went through; 4 MiB are at most 512 parts, half of what a call takes."""
    done = 0
    while done < wanted:
        moved = call(fd, parts, offset + done)  # type: ignore[operator]
        if moved <= 0:
            raise OSError(f"only {done} of {wanted} bytes at {offset}")
        done += moved
        while parts and moved >= len(parts[0]):
            moved -= len(parts[0])
            parts = parts[1:]
        if moved and parts:
            parts = [parts[0][moved:], *parts[1:]]


def _empty(page: Pages) -> None:
    """A page behind the end of the file: no record."""
    page[HEADER_SIZE:] = 0
    header = headers(page)
    header["slots"] = 0
    header["free_bytes"] = PAGE_SIZE - HEADER_SIZE
    header["free_offset"] = HEADER_SIZE


def _check_header(fd: int, length: int) -> None:
    """The restored file is a SQLite database of whole pages (an empty file is an empty database)."""
    if not length:
        return
    start = os.pread(fd, 100, 0)
    size = int.from_bytes(start[16:18], "big")
    size = 65536 if size == 1 else size
    if not start.startswith(b"SQLite format 3\0") or size < 512 or length % size:
        raise PageDamage(1, "the restored file is no SQLite database")


def _connect(path: str, timeout: float) -> sqlite3.Connection:
    uri = f"file:{urllib.parse.quote(os.path.abspath(path))}?mode=rw"
    return sqlite3.connect(uri, timeout=timeout, isolation_level=None, uri=True, check_same_thread=False)


def _copy(path: str, busy_timeout: float, check: Check) -> int:
    """Copy the database as one read transaction sees it. Returns the descriptor of a file without a name."""
    directory, base = os.path.split(os.path.abspath(path))
    # A kill between creating and unlinking leaves an empty file; the next run removes it.
    prefix = f".{base}-"
    for entry in os.scandir(directory):
        if entry.name.startswith(prefix) and entry.name.endswith(".scratch"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)
    with contextlib.closing(_connect(path, 0.1)) as source:
        _begin_reading(source, busy_timeout, check)
        fd, scratch = tempfile.mkstemp(".scratch", prefix, directory)
        try:
            try:
                target = sqlite3.connect(scratch, isolation_level=None, check_same_thread=False)
            finally:
                os.unlink(scratch)
            with contextlib.closing(target):
                target.execute("PRAGMA journal_mode=OFF")
                target.execute("PRAGMA synchronous=OFF")
                source.backup(target, pages=_COPY_PAGES, progress=lambda status, remaining, total: check())
                size = source.execute("PRAGMA page_size").fetchone()[0]
                count = source.execute("PRAGMA page_count").fetchone()[0]
            # A file without a page is an empty database; its copy has one.
            if count and os.fstat(fd).st_size != size * count:
                raise OSError(f"the scratch file has {os.fstat(fd).st_size} bytes instead of {size * count}")
        except BaseException:
            os.close(fd)
            raise
        return fd


def _begin_reading(source: sqlite3.Connection, busy_timeout: float, check: Check) -> None:
    """Open the read transaction that is the snapshot; others may hold the lock for a while."""
    deadline = time.monotonic() + busy_timeout
    while True:
        check()
        source.execute("BEGIN")
        try:
            source.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            return
        except sqlite3.OperationalError as error:
            source.execute("ROLLBACK")
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise


def _open_alone(path: str) -> int:
    """Open a file that one restore at a time writes to; what a killed one left is cut off."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another may have finished, and renamed or removed the file, between our open and our lock.
            if os.path.exists(path) and os.path.samestat(os.fstat(fd), os.stat(path)):
                os.ftruncate(fd, 0)
                return fd
        except BlockingIOError:
            os.close(fd)
            raise DatabaseError(3101) from None
        os.close(fd)


class _InUse(Exception):  # what SQLite says by the journal mode that it keeps
    pass


class LockedDatabase:
    """The old database: locked against everybody else while the new one is made."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._was_wal = False
        self._broken = False
        self._connection = _connect(path, 0.0)
        try:
            self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._was_wal = self._connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            # Without WAL nothing lies beside the file that could later be taken for the new database's.
            if self._connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0] != "delete":
                raise _InUse
            self._connection.execute("BEGIN EXCLUSIVE")
        except _InUse as error:
            self._connection.close()
            raise DatabaseError(3101) from error
        except sqlite3.OperationalError as error:
            self._connection.close()
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise DatabaseError(3101) from error
            raise DatabaseError(3271, path, str(error)) from error
        except sqlite3.DatabaseError:  # not a database, or beyond repair: nothing that could be in use
            self._broken = True

    def before_rename(self) -> None:
        if self._broken:
            for suffix in ("-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path + suffix)

    def restore(self) -> None:
        """The new database did not come about."""
        if not self._broken:
            self._connection.execute("ROLLBACK")
            if self._was_wal:
                self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.close()

    def close(self) -> None:
        if not self._broken:
            self._connection.execute("ROLLBACK")
        self._connection.close()
