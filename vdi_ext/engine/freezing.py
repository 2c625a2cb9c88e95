"""Databases that stand still: frozen for a snapshot, and mounted from one.

What a snapshot backup writes of a database is its first extent as it is in the frozen files: enough to tell, when files
were put back, whether they are those. Files are what the client copies:

* of a SQLite database, the one file. Its writers are held by `freezer`, a process of its own.
* of synthetic pages, none: they are made when they are wanted, out of the state of each extent, which goes into the
  stream. Changes of it wait.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..mtf import MtfError
from ..mtf.pages import EXTENT_PAGES, PAGE_SIZE, Pages
from . import freezer
from .catalog import Entry
from .database import Check, DatabaseError, PageDamage, PagedDatabase, PageLedger, Versions
from .sqlite import CONTENT, LockedDatabase, Sqlite, SqliteSnapshot, content_pages, contents, described_length
from .synthetic import Synthetic, SyntheticSnapshot

_HEAD = (EXTENT_PAGES - 1) * CONTENT  # bytes of a SQLite file in the first extent
_POLL = 100  # milliseconds between two looks at whether to go on
_MOST_RUNS = 100_000  # of changed extents; a stream of metadata is limited
_PATIENCE = 10.0  # seconds that the freezer's process may take to answer


class Frozen(Protocol):
    """A database that nobody can change, and whose files are complete."""

    pages: int

    def extent(self) -> Pages:
        """The first 8 pages."""

    @property
    def state(self) -> list[list[int]] | None:
        """What is in no file: first extent, number of extents and version of those that were changed."""

    def thaw(self) -> bool:
        """Let writers go on. Returns whether they were held all the time; the answer stays the same."""


class Mount(Protocol):
    """A database whose files are about to be put in place."""

    versions: Versions | None

    def accept(self, pages: Pages) -> None:
        """Take pages of the first extent. Raises `PageDamage`."""

    def open(self) -> None:
        """Lock out everybody; the client puts the files in place next. Raises `DatabaseError`, `PageDamage`."""

    def finish(self) -> None:
        """Check that the files are those of the snapshot, and let everybody in. Raises `DatabaseError`."""

    def abandon(self) -> None:
        """Let go; also after a failed `finish`."""


def freeze(entry: Entry, check: Check, lost: Callable[[], None]) -> Frozen:
    """Freeze a database.

    Parameters
    ----------
    entry : Entry
    check : callable
        Called now and then while others are waited for; raises to end the wait.
    lost : callable
        Called on another thread when the freeze ended by itself: its time was up, or its process died.

    Raises
    ------
    DatabaseError
        3032: it has no files that could be frozen. 3260: too much of it was changed to be described. 3271: it cannot be
        read, or others do not end.
    """
    if isinstance(entry.database, Sqlite):
        return FrozenSqlite(entry.database, check, lost)
    if isinstance(entry.database, Synthetic):
        return FrozenSynthetic(entry, entry.database, lost)
    raise DatabaseError(3032, "snapshot")


def mount(database: PagedDatabase, name: str, pages: int, state: object, *, replace: bool) -> Mount:
    """Begin to mount a snapshot of `pages` pages, with the state that `Frozen.state` was. Raises `DatabaseError`."""
    if isinstance(database, Sqlite):
        return MountedSqlite(database, name, pages, replace=replace)
    if isinstance(database, Synthetic):
        return MountedSynthetic(database, pages, state)
    raise DatabaseError(3032, "snapshot")


# ---- SQLite


class FrozenSqlite:
    """A SQLite file whose writers are held by a process of its own, for at most `database.freeze_limit` seconds."""

    state = None

    def __init__(self, database: Sqlite, check: Check, lost: Callable[[], None]) -> None:
        self._lost = lost
        self._last: dict[str, object] = {}
        self._process = _freezer(
            "hold", database.path, str(database.busy_timeout), str(database.freeze_limit), str(_HEAD)
        )
        self._answers = _Answers(self._process)
        self._thread = threading.Thread(target=self._listen, name="vdi-freeze", daemon=True)
        try:
            said = self._answers.next(check)
            if "frozen" not in said:
                raise DatabaseError(3271, database.path, said.get("error", "the process that holds it has died"))
            self._length = int(said["frozen"])
            self._head = base64.b64decode(said["head"])
            self._thread.start()
        except BaseException:
            self._end()
            raise
        self.pages = content_pages(self._length)

    def extent(self) -> Pages:
        pages: Pages = np.empty((EXTENT_PAGES, PAGE_SIZE), np.uint8)
        fd = os.memfd_create("vdi_ext-frozen", os.MFD_CLOEXEC)
        with contextlib.closing(SqliteSnapshot(fd, self._length)) as snapshot:
            with open(fd, "wb", closefd=False) as file:
                file.write(self._head)
            snapshot.fill(pages, 0)
        return pages

    def thaw(self) -> bool:
        with contextlib.suppress(BrokenPipeError, ValueError):  # it has ended; it was asked before
            os.write(self._process.stdin.fileno(), b"thaw\n")
        self._thread.join(_PATIENCE)
        self._end()
        return "thawed" in self._last

    def _listen(self) -> None:
        self._last = self._answers.next(lambda: None)
        if "thawed" not in self._last:
            self._lost()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        if self._thread.is_alive():
            self._thread.join()
        self._process.stdin.close()
        self._process.stdout.close()


class MountedSqlite:
    """A SQLite file that the client puts in place; the old one is locked meanwhile."""

    versions: Versions | None = None

    def __init__(self, database: Sqlite, name: str, pages: int, *, replace: bool) -> None:
        self._path = database.path
        self._pages = pages
        if not replace and os.path.exists(self._path) and os.path.getsize(self._path):
            raise DatabaseError(3159, name)
        self._ledger = PageLedger(EXTENT_PAGES)
        self._head = bytearray(_HEAD)
        self._length = -1
        self._old: LockedDatabase | None = None
        self._before: tuple[int, ...] = ()

    def accept(self, pages: Pages) -> None:
        pages, ids = self._ledger.admit(pages)
        for page, number in zip(pages, ids.tolist(), strict=True):
            if number == 0:
                self._length = described_length(page, self._pages)
            else:
                place = (number - 1) * CONTENT
                self._head[place : place + CONTENT] = contents(page.reshape(1, PAGE_SIZE))[0]

    def open(self) -> None:
        self._ledger.close()
        if os.path.exists(self._path):
            self._old = LockedDatabase(self._path)
            self._before = self._state()
        else:
            # What a database that is gone has left would be taken for the new one's.
            for suffix in ("-wal", "-shm", "-journal"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path + suffix)

    def finish(self) -> None:
        process = _freezer("look", self._path, str(_HEAD))
        try:
            said = _Answers(process).next(lambda: None)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
        if "error" in said or "size" not in said:
            raise DatabaseError(3271, self._path, said.get("error", "it cannot be read"))
        head = bytes(self._head[: min(self._length, _HEAD)])
        if said["size"] != self._length or base64.b64decode(said["head"]) != head:
            raise DatabaseError(3129, self._path)
        if self._old is not None:
            self._old.close()
            self._old = None

    def abandon(self) -> None:
        if self._old is None:
            return
        # Only an old database that is still what it was gets back what locking it has changed.
        if self._state() == self._before:
            self._old.restore()
        else:
            self._old.close()
        self._old = None

    def _state(self) -> tuple[int, ...]:
        try:
            found = os.stat(self._path)
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns


def _freezer(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", freezer.__file__, words[0], os.path.abspath(words[1]), *words[2:]],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C is the server's to handle
    )  # fmt: skip


class _Answers:
    """Lines of a freezer's process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._fd = process.stdout.fileno()
        self._data = b""

    def next(self, check: Check) -> dict:
        """The next one; an empty one where the process has ended. `check` is called while it does not come."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        while b"\n" not in self._data:
            if not poll.poll(_POLL):
                check()
                continue
            piece = os.read(self._fd, 1 << 16)
            if not piece:
                return {}
            self._data += piece
        line, _, self._data = self._data.partition(b"\n")
        return json.loads(line)


# ---- synthetic pages


class FrozenSynthetic:
    """Pages that are made when they are wanted; whoever wants to change them waits, for a limited time."""

    def __init__(self, entry: Entry, database: Synthetic, lost: Callable[[], None]) -> None:
        self._entry = entry
        self._lost = lost
        self._once = threading.Lock()
        self._frozen = True
        self._held = True
        entry.freeze()
        self._timer = threading.Timer(database.freeze_limit, self._expire)
        try:
            with entry.lock:
                assert entry.versions is not None
                versions = entry.versions.copy()
            self.pages = database.pages
            self.state: list[list[int]] | None = _runs(versions)
            self._snapshot = SyntheticSnapshot(database, versions)
            self._timer.daemon = True
            self._timer.start()
        except BaseException:
            entry.thaw()
            raise

    def extent(self) -> Pages:
        pages: Pages = np.empty((EXTENT_PAGES, PAGE_SIZE), np.uint8)
        self._snapshot.fill(pages, 0)
        return pages

    def thaw(self) -> bool:
        self._end(held=True)
        self._timer.cancel()
        self._timer.join()
        return self._held

    def _expire(self) -> None:
        if self._end(held=False):
            self._lost()

    def _end(self, *, held: bool) -> bool:
        with self._once:
            ended, self._frozen = self._frozen, False
            if ended:
                self._held = held
                self._entry.thaw()
            return ended


class MountedSynthetic:
    """Synthetic pages need no files; the first extent must be theirs."""

    def __init__(self, database: Synthetic, pages: int, state: object) -> None:
        if pages != database.pages:
            raise PageDamage(0, f"the backup holds {pages} pages, the database {database.pages}")
        self._ledger = PageLedger(EXTENT_PAGES)
        self.versions: Versions | None = _versions(state, database.unchanged())
        self._expected: Pages = np.empty((EXTENT_PAGES, PAGE_SIZE), np.uint8)
        SyntheticSnapshot(database, self.versions).fill(self._expected, 0)

    def accept(self, pages: Pages) -> None:
        pages, ids = self._ledger.admit(pages)
        wrong = (pages != self._expected[ids]).any(axis=1)
        if wrong.any():
            raise PageDamage(int(ids[np.argmax(wrong)]), "the page does not hold what was backed up")

    def open(self) -> None:
        self._ledger.close()

    def finish(self) -> None:
        """Nothing was put anywhere."""

    def abandon(self) -> None:
        """Nothing is held."""


def _runs(versions: Versions) -> list[list[int]]:
    """First extent, number of extents and version of what was changed."""
    edges = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist(), len(versions)]
    runs = [
        [first, end - first, int(versions[first])]
        for first, end in zip(edges, edges[1:], strict=False)
        if versions[first]
    ]
    if len(runs) > _MOST_RUNS:
        raise DatabaseError(3260)
    return runs


def _versions(state: object, versions: Versions) -> Versions:
    """The inverse of `_runs`, of whatever a stream says. Raises `MtfError`."""
    if not isinstance(state, list):
        raise MtfError("the snapshot does not say what was changed")
    for run in state:
        if not isinstance(run, list) or len(run) != 3 or any(type(value) is not int for value in run):
            raise MtfError("what the snapshot says of changes is no list of extents")
        first, count, version = run
        if not (0 <= first < first + count <= len(versions) and 0 < version <= 0xFFFFFFFF):
            raise MtfError("the snapshot names extents that are none")
        versions[first : first + count] = version
    return versions
