"""Holds the writers of one SQLite file, or looks at it; a program of its own, of the standard library alone.

A process of its own, because closing a descriptor of the file drops the POSIX locks that every connection of the same
process has on it; because the end of a process ends its locks; and because the time limit then holds whatever the
server is doing. The end of standard input ends it.

    freezer.py hold PATH PATIENCE LIMIT LENGTH
        Waits at most PATIENCE seconds for other writers, then lets nobody write for at most LIMIT seconds, or until
        a line comes. What was committed is then in the file itself and on disk. Says
        {"frozen": size, "head": its first LENGTH bytes}, and at the end {"thawed": true} or {"expired": true}.
    freezer.py look PATH LENGTH
        Says {"size": ..., "head": ...}.

What fails is said as {"error": text}. Bytes are in base64.
"""

import base64
import contextlib
import json
import os
import select
import sqlite3
import sys
import time
import urllib.parse

_TRY = 0.005  # seconds between two tries
_LOOK = 0.05  # seconds between two looks at whether the parent lives


def hold(path: str, patience: float, limit: float, length: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # to the end of the process: closing it would drop the locks
    with contextlib.closing(_connect(path)) as holder, contextlib.closing(_connect(path)) as cleaner:
        deadline = time.monotonic() + patience
        while not _held(holder) or not _complete(holder, cleaner):
            if time.monotonic() > deadline:
                raise TimeoutError(f"others have used {path} for more than {patience:g} seconds")
            if _told(_TRY):
                return
        os.fsync(fd)
        _say(frozen=os.fstat(fd).st_size, head=_head(fd, length))
        end = time.monotonic() + limit
        while (left := end - time.monotonic()) > 0:
            if _told(min(left, 1.0)):
                break
        holder.execute("ROLLBACK")
    _say(**{"thawed" if left > 0 else "expired": True})


def _connect(path: str) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{urllib.parse.quote(path)}?mode=rw", 0.0, isolation_level=None, uri=True)


def _held(holder: sqlite3.Connection) -> bool:
    """Whether no other connection can write any more: SQLite's write lock, in either kind of journal."""
    if holder.in_transaction:
        return True
    try:
        holder.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False
    return True


def _complete(holder: sqlite3.Connection, cleaner: sqlite3.Connection) -> bool:
    """Whether the file itself holds all that was committed: the write-ahead log, if there is one, was copied into it.

    Readers of an older state stop that until they end; the lock is kept meanwhile, so it ends.
    """
    try:
        _, logged, copied = cleaner.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise
        return False
    return logged == copied


def look(path: str, length: int) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _say(size=os.fstat(fd).st_size, head=_head(fd, length))


def _head(fd: int, length: int) -> str:
    head = b""
    while len(head) < length and (part := os.pread(fd, length - len(head), len(head))):
        head += part
    return base64.b64encode(head).decode()


def _told(timeout: float) -> bool:
    """Whether it is time to end: a word from the parent, or its end."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        if select.select([0], [], [], min(left, _LOOK))[0]:
            if not os.read(0, 4096):
                raise SystemExit(1)
            return True
        if os.getppid() != _PARENT:
            raise SystemExit(1)
    return False


def _say(**words: object) -> None:
    os.write(1, json.dumps(words).encode() + b"\n")


_PARENT = os.getppid()


def main() -> None:
    """One order, from the command line."""
    try:
        if sys.argv[1] == "hold":
            hold(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
        else:
            look(sys.argv[2], int(sys.argv[3]))
    except (OSError, sqlite3.Error) as problem:
        _say(error=str(problem))


if __name__ == "__main__":
    main()
