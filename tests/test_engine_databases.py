"""The databases of the stand-in by themselves: snapshots and targets, without devices."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vdi_ext.engine import Replay, Sqlite, Synthetic, database_at
from vdi_ext.engine.database import DatabaseError, PageDamage, PageLedger
from vdi_ext.engine.sqlite import CONTENT, content_pages
from vdi_ext.mtf import PAGE_SIZE, page_checksums


def nothing() -> None:
    """A check that lets everything go on."""


def pages_of(snapshot, step: int = 128) -> Iterator[np.ndarray]:
    for first in range(0, snapshot.pages, step):
        pages = np.empty((min(step, snapshot.pages - first), PAGE_SIZE), np.uint8)
        snapshot.fill(pages, first)
        yield pages


def restore(snapshot, target, order: random.Random | None = None) -> None:
    runs = list(pages_of(snapshot, 16))
    if order:
        order.shuffle(runs)
    for run in runs:
        target.accept(run)
    target.finish()


# ---- addresses


def test_addresses() -> None:
    assert database_at("sqlite:/a/b:c.db") == Sqlite("/a/b:c.db")
    assert database_at("replay:/a,/b") == Replay(("/a", "/b"))
    assert database_at("synthetic:10GiB:7") == Synthetic(10 << 30, 7)
    assert database_at("synthetic:64k") == Synthetic(65536)
    assert database_at("synthetic:1M:3:full") == Synthetic(1 << 20, 3, "FULL")
    wrong = ["sqlite:", "replay:", "synthetic:", "synthetic:1X", "synthetic:-1", "synthetic:1M:0:HALF", "mssql://h", ""]
    for bad in wrong:
        with pytest.raises(ValueError):
            database_at(bad)


# ---- synthetic


def test_synthetic_pages_have_headers_and_checksums_and_depend_on_the_seed() -> None:
    snapshot = Synthetic(3_000_000, 9).snapshot("db", nothing)
    assert snapshot.pages == 368  # 367 pages in whole extents
    whole = np.concatenate(list(pages_of(snapshot)))
    words = whole.view("<u4")
    assert (whole[:, 0] == 1).all() and (whole[:, 1] == 1).all()
    assert words[:, 8].tolist() == list(range(368))
    assert (whole[:, 36] == 1).all()
    assert (words[:, 15] == page_checksums(whole)).all()
    assert (np.concatenate(list(pages_of(Synthetic(3_000_000, 9).snapshot("db", nothing), 24))) == whole).all()
    other = np.concatenate(list(pages_of(Synthetic(3_000_000, 10).snapshot("db", nothing))))
    assert (other[:, 96:] != whole[:, 96:]).mean() > 0.9
    # No two pages and no two sectors are the same.
    sectors = whole.reshape(-1, 512)
    assert len({sector.tobytes() for sector in sectors}) == len(sectors)


def test_a_synthetic_restore_checks_every_page() -> None:
    source = Synthetic(1 << 20, 3)
    snapshot = source.snapshot("db", nothing)
    restore(snapshot, source.target("db", 128, replace=False), random.Random(1))

    target = source.target("db", 128, replace=False)
    for pages in list(pages_of(snapshot, 8))[:-1]:
        target.accept(pages)
    with pytest.raises(PageDamage, match=r"\(1:120\).*missing"):
        target.finish()
    with pytest.raises(PageDamage, match="twice"):
        target.accept(next(pages_of(snapshot, 8)))

    target = source.target("db", 128, replace=False)
    wrong = next(pages_of(snapshot, 8))
    wrong[5, 4000] ^= 1
    with pytest.raises(PageDamage, match=r"\(1:5\).*checksum"):
        target.accept(wrong)
    wrong.view("<u4")[:, 15] = page_checksums(wrong)  # the checksum made good: only the content tells
    with pytest.raises(PageDamage, match=r"\(1:5\).*what was backed up"):
        target.accept(wrong)
    with pytest.raises(PageDamage, match="pages"):
        source.target("db", 136, replace=False)


@pytest.mark.parametrize("step", [1, 4, 8, 24])
def test_pages_tell_which_state_they_are_of(step: int) -> None:
    source = Synthetic(1 << 20, 3)
    versions = source.unchanged()
    versions[[1, 4, 5]] = 7, 3000, 3000
    changed, first = source.snapshot("db", nothing, versions), source.snapshot("db", nothing)
    whole = np.concatenate(list(pages_of(changed)))
    assert (whole.view("<u4")[:, 15] == page_checksums(whole)).all()
    assert whole.view("<u4")[8, 10:13].tolist() == [20, 22, 1]  # the header's log sequence number: record 7
    differ = (whole != np.concatenate(list(pages_of(first)))).any(axis=1).reshape(-1, 8)
    assert differ.all(axis=1).nonzero()[0].tolist() == differ.any(axis=1).nonzero()[0].tolist() == [1, 4, 5]

    target = source.target("db", 128, replace=False)
    for pages in pages_of(changed, step):
        target.accept(pages)
    target.finish()
    assert (target.versions == versions).all()

    upon = source.target("db", 128, replace=True, versions=versions, count=16)
    for extent in (1, 4):
        for start in range(8 * extent, 8 * extent + 8, min(step, 8)):
            pages = np.empty((min(step, 8), PAGE_SIZE), np.uint8)
            first.fill(pages, start)
            upon.accept(pages)
    upon.finish()
    assert upon.versions.nonzero()[0].tolist() == [5] and versions[1] == 7, "what it is put upon stays as it is"

    mixed = source.target("db", 128, replace=False)
    with pytest.raises(PageDamage, match=r"\(1:8\).*several states"):
        for start in range(0, 128, 4):  # half of the second extent is of another state
            pages = np.empty((4, PAGE_SIZE), np.uint8)
            (first if start == 12 else changed).fill(pages, start)
            mixed.accept(pages)


def test_a_ledger_takes_single_pages_in_any_order() -> None:
    snapshot = Synthetic(65536 * 2).snapshot("db", nothing)
    singles = list(pages_of(snapshot, 1))
    random.Random(2).shuffle(singles)
    ledger = PageLedger(16)
    for page in singles:
        ledger.admit(page)
    ledger.close()
    far = singles[0].copy()
    far.view("<u4")[:, 8] = 4_000_000_000
    with pytest.raises(PageDamage):
        PageLedger(16).admit(far)


# ---- SQLite


def create(path: Path, journal: str, accounts: int = 100, rows: int = 500) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={journal}")
        db.execute("CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER)")
        db.execute("CREATE TABLE commits(n INTEGER)")
        db.execute("CREATE TABLE filler(id INTEGER PRIMARY KEY, data BLOB)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO accounts VALUES(?, 1000)", ((n,) for n in range(accounts)))
        db.execute("INSERT INTO commits VALUES(0)")
        db.executemany("INSERT INTO filler(data) VALUES(?)", ((os.urandom(3000),) for _ in range(rows)))
        db.execute("COMMIT")


def write_for_ever(path: str, started, stop) -> None:
    """Transfers between accounts that keep their total, with a counter of commits."""
    pick = random.Random(1)
    with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as db:
        while not stop.is_set():
            db.execute("BEGIN IMMEDIATE")
            one, two = pick.sample(range(100), 2)
            db.execute("UPDATE accounts SET balance = balance - 7 WHERE id = ?", (one,))
            db.execute("UPDATE filler SET data = ? WHERE id = ?", (os.urandom(3000), pick.randrange(1, 500)))
            db.execute("UPDATE accounts SET balance = balance + 7 WHERE id = ?", (two,))
            db.execute("UPDATE commits SET n = n + 1")
            db.execute("COMMIT")
            started.set()


def commits(path: Path) -> int:
    # With a longer timeout SQLite sleeps ever longer between its attempts, and the writer is always there first.
    with contextlib.closing(sqlite3.connect(path, timeout=0.005)) as db:
        while True:
            try:
                return db.execute("SELECT n FROM commits").fetchone()[0]
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise


def examine(path: Path) -> int:
    """Integrity, and the invariant that a torn copy would break; returns the commit counter."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT sum(balance), count(*) FROM accounts").fetchone() == (100_000, 100)
        return db.execute("SELECT n FROM commits").fetchone()[0]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_database_under_writes_is_backed_up_as_it_was_at_one_moment(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "live.db"
    create(path, journal)
    context = multiprocessing.get_context("spawn")
    started, stop = context.Event(), context.Event()
    writers = [context.Process(target=write_for_ever, args=(str(path), started, stop)) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        assert started.wait(60)
        for round_ in range(5):
            before = commits(path)
            with contextlib.closing(Sqlite(str(path)).snapshot("db", nothing)) as snapshot:
                after = commits(path)
                restored = tmp_path / f"restored{round_}.db"
                target = Sqlite(str(restored)).target("db", snapshot.pages, replace=False)
                restore(snapshot, target, random.Random(round_))
            assert before <= examine(restored) <= after
    finally:
        stop.set()
        for writer in writers:
            writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert not [name for name in os.listdir(tmp_path) if "scratch" in name or "restoring" in name]


@pytest.mark.parametrize("length", [0, 4096, CONTENT * 7, CONTENT * 7 + 1, CONTENT * 8])
def test_sizes_around_whole_extents(tmp_path: Path, length: int) -> None:
    pages = content_pages(length)
    assert pages % 8 == 0 and (pages - 1) * CONTENT >= length > (pages - 9) * CONTENT - CONTENT


def test_pages_of_sqlite_are_sealed_and_contain_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    create(path, "delete", rows=20)
    with contextlib.closing(Sqlite(str(path)).snapshot("db", nothing)) as snapshot:
        whole = np.concatenate(list(pages_of(snapshot, 24)))
    words = whole.view("<u4")
    assert (words[:, 15] == page_checksums(whole)).all()
    assert words[:, 8].tolist() == list(range(snapshot.pages))
    assert whole[:, 1].tolist() == [15] + [3] * (snapshot.pages - 1)
    # The layout that the module documents, taken apart by hand.
    assert whole[0, 100:116].tobytes() == b"vdi_ext sqlite 1"
    length = int.from_bytes(whole[0, 116:124].tobytes(), "little")
    content = b"".join(page[110 : 110 + 8040].tobytes() for page in whole[1:])[:length]
    copy = tmp_path / "copy.db"
    copy.write_bytes(content)
    examine(copy)


def test_an_empty_database(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    with contextlib.closing(Sqlite(str(path)).snapshot("db", nothing)) as snapshot:
        restore(snapshot, Sqlite(str(tmp_path / "new.db")).target("db", snapshot.pages, replace=False))
    with contextlib.closing(sqlite3.connect(tmp_path / "new.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    missing = Sqlite(str(tmp_path / "missing.db"))
    with pytest.raises(DatabaseError) as info:
        missing.check("db")
    assert info.value.number == 911
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"not a database" * 1000)
    with pytest.raises(DatabaseError) as info:
        Sqlite(str(junk)).snapshot("db", nothing)
    assert info.value.number == 3271
    assert os.listdir(tmp_path) == ["junk.db"]


def test_a_lock_that_is_never_released_ends_the_wait(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    create(path, "delete")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseError) as info:
            Sqlite(str(path), busy_timeout=0.2).snapshot("db", nothing)
        assert info.value.number == 3271

        class GiveUp(Exception):
            pass

        def give_up() -> None:
            raise GiveUp

        with pytest.raises(GiveUp):
            Sqlite(str(path)).snapshot("db", give_up)


def test_a_snapshot_ends_when_the_statement_does(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    create(path, "wal", rows=3000)

    class Stop(Exception):
        pass

    calls = 0

    def stop_later() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Stop

    with pytest.raises(Stop):
        Sqlite(str(path)).snapshot("db", stop_later)
    assert not [name for name in os.listdir(tmp_path) if "scratch" in name]


def test_what_a_killed_backup_may_leave_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    create(path, "delete")
    (tmp_path / ".a.db-x7.scratch").touch()
    Sqlite(str(path)).snapshot("db", nothing).close()
    assert os.listdir(tmp_path) == ["a.db"]


def test_existing_databases_are_replaced_only_when_told(tmp_path: Path) -> None:
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    create(old, "wal", rows=700)
    create(new, "delete", rows=20)
    with contextlib.closing(Sqlite(str(new)).snapshot("db", nothing)) as snapshot:
        with pytest.raises(DatabaseError) as info:
            Sqlite(str(old)).target("db", snapshot.pages, replace=False)
        assert info.value.number == 3159
        target = Sqlite(str(old)).target("db", snapshot.pages, replace=True)
        with pytest.raises(DatabaseError) as info:  # one restore at a time
            Sqlite(str(old)).target("db", snapshot.pages, replace=True)
        assert info.value.number == 3101
        restore(snapshot, target)
    examine(old)
    with contextlib.closing(sqlite3.connect(old)) as db:
        assert db.execute("SELECT count(*) FROM filler").fetchone() == (20,)
    assert sorted(os.listdir(tmp_path)) == ["new.db", "old.db"]


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_a_database_in_use_is_not_replaced(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "a.db"
    create(path, journal)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as user:
        user.execute("BEGIN")
        user.execute("SELECT * FROM commits").fetchall()
        with pytest.raises(DatabaseError) as info:
            Sqlite(str(path)).target("db", 8, replace=True)
        assert info.value.number == 3101
        user.execute("COMMIT")
    examine(path)


def test_a_failed_restore_leaves_the_old_database_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    create(path, "wal")
    before = commits(path)
    with contextlib.closing(Sqlite(str(path)).snapshot("db", nothing)) as snapshot:
        target = Sqlite(str(path)).target("db", snapshot.pages, replace=True)
        for pages in list(pages_of(snapshot, 8))[:-1]:
            target.accept(pages)
        with pytest.raises(PageDamage):
            target.finish()
        target.abandon()
    assert examine(path) == before
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert sorted(os.listdir(tmp_path)) == ["a.db"]


def test_a_broken_database_can_be_replaced(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.db", tmp_path / "bad.db"
    create(good, "delete", rows=20)
    bad.write_bytes(b"no database at all" * 500)
    (tmp_path / "bad.db-wal").write_bytes(b"stale")
    with contextlib.closing(Sqlite(str(good)).snapshot("db", nothing)) as snapshot:
        restore(snapshot, Sqlite(str(bad)).target("db", snapshot.pages, replace=True))
    examine(bad)
    assert sorted(os.listdir(tmp_path)) == ["bad.db", "good.db"]


def test_pages_of_something_else_are_no_sqlite_database(tmp_path: Path) -> None:
    target = Sqlite(str(tmp_path / "a.db")).target("db", 8, replace=False)
    with pytest.raises(PageDamage):
        target.accept(next(pages_of(Synthetic(65536).snapshot("db", nothing), 8)))
    target.abandon()
    assert os.listdir(tmp_path) == []


def test_a_killed_restore_leaves_the_old_database_and_the_next_one_works(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    create(path, "delete", rows=50)
    program = f"""
import os, signal
import numpy as np
from vdi_ext.engine import Sqlite
source = Sqlite({str(path)!r})
snapshot = source.snapshot("db", lambda: None)
target = source.target("db", snapshot.pages, replace=True)
pages = np.empty((8, 8192), np.uint8)
snapshot.fill(pages, 0)
target.accept(pages)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == ["a.db", "a.db.restoring"]
    examine(path)
    with contextlib.closing(Sqlite(str(path)).snapshot("db", nothing)) as snapshot:
        restore(snapshot, Sqlite(str(path)).target("db", snapshot.pages, replace=True))
    examine(path)
    assert os.listdir(tmp_path) == ["a.db"]


# ---- replay


def test_a_replay_wants_files_and_as_many_devices(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Replay(())
    with pytest.raises(TypeError):
        Replay("one")  # type: ignore[arg-type]
    one = tmp_path / "one"
    one.write_bytes(bytes(1536))
    replay = Replay((str(one),))
    with pytest.raises(DatabaseError) as info:
        replay.source(("a", "b"), 512)
    assert info.value.number == 3231
    with pytest.raises(DatabaseError) as info:
        replay.source(("a",), 1024)
    assert (info.value.number, *info.value.args[1:]) == (3272, "a", 512, 1024)
    with pytest.raises(DatabaseError) as info:
        Replay((str(tmp_path / "two"),)).check("db")
    assert info.value.number == 911
