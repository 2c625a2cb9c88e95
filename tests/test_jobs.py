"""Backup and restore as a user's program calls them, with real servers in processes of their own."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from test_storage import DAMAGES, flip

from vdi_ext import Command, CommandCode, VDError, VirtualDeviceSet
from vdi_ext.jobs import (
    ArgumentError,
    ProgressEvent,
    SQLError,
    StatementLostError,
    StorageError,
    VerificationError,
    backup,
    recover,
    restore,
)
from vdi_ext.storage import StoredSet

ALONE = [
    "01_full_checksum_2008r2.bak", "02_diff_checksum_2008r2.bak", "03_log_checksum_2vlf_2008r2.trn",
    "04_chain_full_2008r2.bak", "05_chain_log_2008r2.trn", "06_chain_log_empty_2008r2.trn", "07_chain_diff_2008r2.bak",
    "08_stripe1of2_full_2008r2.bak", "09_stripe2of2_full_2008r2.bak", "10_stripe1of2_log_2008r2.trn",
    "11_stripe2of2_log_2008r2.trn", "12_full_mediapassword_2008r2.bak", "22_full_compressed_2016.bak",
]  # fmt: skip
STRIPED = [
    ["08_stripe1of2_full_2008r2.bak", "09_stripe2of2_full_2008r2.bak"],
    ["10_stripe1of2_log_2008r2.trn", "11_stripe2of2_log_2008r2.trn"],
]
MODES = pytest.mark.parametrize("own_process", [True, False], ids=["own process", "in process"])
GRANTED = pytest.mark.parametrize("request_complete", [True, False], ids=["Complete granted", "Flush only"])


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def there_and_back(paths: list[Path], directory: Path, **options: object) -> None:
    """Back files up, restore them elsewhere, compare byte for byte."""
    done = backup(address(paths), directory / "set", devices=len(paths), **options)
    assert done.size == sum(path.stat().st_size for path in paths)
    assert [digest(directory / "set" / stripe.file) for stripe in StoredSet(done.path).manifest.stripes] == [
        digest(path) for path in paths]
    copies = [directory / f"copy-{n}" for n in range(len(paths))]
    restore(done.path, address(copies), **options)
    assert [digest(copy) for copy in copies] == [digest(path) for path in paths]


def address(paths: list[Path]) -> str:
    return "replay:" + ",".join(map(str, paths))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Three files that are no backups, of different sizes in whole blocks."""
    folder = tmp_path / "source"
    folder.mkdir()
    paths = []
    for number, blocks in enumerate((5000, 3000, 4096), 1):
        paths.append(folder / f"file-{number}")
        paths[-1].write_bytes(hashlib.shake_128(bytes([number])).digest(512 * blocks))
    return paths


@pytest.mark.parametrize("name", ALONE)
def test_a_real_backup_comes_back_byte_for_byte(bak: Path, tmp_path: Path, name: str) -> None:
    there_and_back([bak / name], tmp_path)


@MODES
@GRANTED
@pytest.mark.parametrize("names", STRIPED, ids=["08+09", "10+11"])
def test_real_stripe_sets_come_back_byte_for_byte(
    bak: Path, tmp_path: Path, names: list[str], own_process: bool, request_complete: bool
) -> None:
    paths = [bak / name for name in names]
    there_and_back(paths, tmp_path, own_process=own_process, request_complete=request_complete)


@pytest.mark.parametrize("size", [65536, 1 << 20, 4 << 20])
def test_transfer_sizes_do_not_change_a_byte(bak: Path, tmp_path: Path, size: int) -> None:
    there_and_back([bak / name for name in STRIPED[0]], tmp_path, max_transfer_size=size, buffer_count=3)


@GRANTED
def test_a_set_is_prepared_before_the_server_hears_that_it_is_durable(
    tmp_path: Path, files: list[Path], request_complete: bool
) -> None:
    partial = tmp_path / "set.partial"
    seen: list[tuple[str, str, int]] = []

    def look(event: ProgressEvent) -> None:
        manifest = json.loads((partial / "manifest.json").read_text()) if partial.exists() else {"stripes": []}
        complete = sum(stripe["complete"] for stripe in manifest["stripes"])
        seen.append((event.phase, manifest.get("state", "none"), complete))

    backup(address(files), tmp_path / "set", devices=3, progress=look, request_complete=request_complete)
    phases = [phase for phase, *_ in seen if phase != "message"]
    assert phases[:2] == ["creating", "configuring"]
    assert phases.count("opening") == 3
    assert phases.count("flushing") == (6 if request_complete else 3)
    assert phases.count("prepared") == 1
    assert phases[-3:] == ["closing", "publishing", "done"]
    assert ("prepared", "prepared", 3) in seen
    assert all(state == "writing" and complete < 3 for phase, state, complete in seen if phase == "opening")
    assert ("publishing", "prepared", 3) in seen
    assert seen[-1] == ("done", "none", 0)


def test_the_manifest_says_what_the_set_is(tmp_path: Path, files: list[Path]) -> None:
    done = backup(address(files), tmp_path / "set", devices=3, database="it's [mine]", block_size=1024)
    manifest = StoredSet(done.path).manifest
    assert manifest.database == "it's [mine]"
    assert manifest.source == address(files)
    assert manifest.statement.startswith("BACKUP DATABASE [it's [mine]]] TO VIRTUAL_DEVICE = N'")
    assert manifest.statement.endswith(" WITH BLOCKSIZE = 1024")
    assert manifest.configuration["block_size"] == 1024
    assert manifest.configuration["device_count"] == 3
    assert manifest.tool.startswith("vdi-ext ")
    assert any("3014" in message for message in manifest.messages)
    assert list(done.messages) == manifest.messages
    restore(done.path, address([tmp_path / f"copy-{n}" for n in range(3)]))


def test_progress_counts_every_byte(tmp_path: Path, files: list[Path]) -> None:
    total = sum(path.stat().st_size for path in files)
    for run in (
        lambda see: backup(address(files), tmp_path / "set", devices=3, progress=see),
        lambda see: restore(tmp_path / "set", address([tmp_path / f"copy-{n}" for n in range(3)]), progress=see),
    ):
        seen: list[ProgressEvent] = []
        run(seen.append)
        assert seen[-1].phase == "done"
        assert seen[-1].bytes_done == seen[-1].bytes_total == total
        done = [event.bytes_done for event in seen]
        assert done == sorted(done)


def test_verify_first_reads_everything_before_the_server_starts(tmp_path: Path, files: list[Path]) -> None:
    backup(address(files), tmp_path / "set", devices=3)
    seen: list[ProgressEvent] = []
    copies = [tmp_path / f"copy-{n}" for n in range(3)]
    restore(tmp_path / "set", address(copies), verify_first=True, progress=seen.append)
    assert seen[0].phase == "verifying"
    flip(tmp_path / "set" / "stripe-02-of-03.bak", -1)
    flip(tmp_path / "set" / "stripe-03-of-03.bak", 0)
    seen.clear()
    with pytest.raises(VerificationError) as caught:
        restore(tmp_path / "set", address(copies), verify_first=True, progress=seen.append)
    assert ["stripe 2 of 3" in caught.value.problems[0], "stripe 3 of 3" in caught.value.problems[1]] == [True, True]
    assert {event.phase for event in seen} == {"verifying"}


@MODES
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_fails_the_restore_and_is_named(
    tmp_path: Path, files: list[Path], kind: str, number: int, own_process: bool
) -> None:
    backup(address(files), tmp_path / "set", devices=3, own_process=own_process)
    damage, words = DAMAGES[kind]
    damage(tmp_path / "set" / f"stripe-0{number}-of-03.bak")
    copies = [tmp_path / f"copy-{n}" for n in range(3)]
    with pytest.raises(VerificationError, match=f"stripe {number} of 3 .*{words}"):
        restore(tmp_path / "set", address(copies), own_process=own_process)
    copy, file = copies[number - 1], files[number - 1]
    assert not copy.exists() or copy.stat().st_size < file.stat().st_size


def test_swapped_stripes_fail_the_restore(tmp_path: Path, files: list[Path]) -> None:
    files[1].write_bytes(hashlib.shake_128(b"x").digest(files[0].stat().st_size))
    backup(address(files), tmp_path / "set", devices=3)
    one, two = (tmp_path / "set" / f"stripe-0{n}-of-03.bak" for n in (1, 2))
    one.rename(tmp_path / "x"), two.rename(one), (tmp_path / "x").rename(two)
    with pytest.raises(VerificationError, match="stripe [12] of 3"):
        restore(tmp_path / "set", address([tmp_path / f"copy-{n}" for n in range(3)]))


@MODES
def test_a_store_that_fails_fails_the_backup(
    tmp_path: Path, files: list[Path], own_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.write, []

    def write(fd: int, data: memoryview) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith("stripe-02-of-03.bak"):
            calls.append(1)
            if len(calls) == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageError, match=r"stripe 2 .*No space left on device"):
        backup(address(files), tmp_path / "set", devices=3, own_process=own_process, max_transfer_size=65536)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@GRANTED
@pytest.mark.parametrize("call", [2, 5])
def test_a_flush_that_fails_fails_the_backup(
    tmp_path: Path, files: list[Path], request_complete: bool, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def fsync(fd: int) -> None:
        if ".bak" in os.readlink(f"/proc/self/fd/{fd}"):
            calls.append(1)
            if len(calls) == (call if request_complete else min(call, 3)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="Input/output error"):
        backup(address(files), tmp_path / "set", devices=3, request_complete=request_complete)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_inspect_sees_every_byte_in_the_shared_buffer(tmp_path: Path, files: list[Path]) -> None:
    hashes = {n: hashlib.sha256() for n in (1, 2, 3)}

    def look(device_set: VirtualDeviceSet, device: int, command: Command) -> None:
        assert command.code is CommandCode.WRITE
        hashes[device].update(command)

    backup(address(files), tmp_path / "set", devices=3, inspect=look)
    assert [hashes[n].hexdigest() for n in (1, 2, 3)] == [digest(path) for path in files]


@MODES
@pytest.mark.parametrize("phase", ["creating", "configuring", "opening", "flushing", "prepared", "closing", "message"])
@pytest.mark.parametrize("error", [RuntimeError, BrokenPipeError, KeyboardInterrupt])
def test_what_progress_raises_ends_the_job(
    tmp_path: Path, files: list[Path], phase: str, error: type[BaseException], own_process: bool
) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.phase == phase:
            raise error

    with pytest.raises(error):
        backup(address(files), tmp_path / "set", devices=3, progress=stop, own_process=own_process)
    left = sorted(p.name for p in tmp_path.iterdir())
    if phase in ("closing", "message"):
        assert left in (["set", "source"], ["source"])  # where the statement has succeeded, the set counts
    else:
        assert left == ["source"]


def test_what_inspect_raises_ends_the_job(tmp_path: Path, files: list[Path]) -> None:
    def look(device_set: VirtualDeviceSet, device: int, command: Command) -> None:
        raise FileNotFoundError(errno.ENOENT, "mine")

    with pytest.raises(FileNotFoundError):
        backup(address(files), tmp_path / "set", devices=3, inspect=look)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_an_existing_name_is_refused_before_anything_starts(tmp_path: Path, files: list[Path]) -> None:
    (tmp_path / "set").mkdir()
    seen: list[ProgressEvent] = []
    with pytest.raises(StorageError, match="exists"):
        backup(address(files), tmp_path / "set", devices=3, progress=seen.append)
    assert seen == []


def test_too_little_space_is_said_before_anything_starts(tmp_path: Path) -> None:
    seen: list[ProgressEvent] = []
    with pytest.raises(StorageError, match="bytes free, the backup needs about"):
        backup(f"synthetic:{1 << 44}", tmp_path / "set", progress=seen.append)
    assert seen == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("nothing", {}, "no address"),
        ("sqlite:", {}, "no address"),
        ("oracle:db", {}, "no address"),
        ("sqlite:/does/not/exist", {}, "No such file"),
        ("replay:/does/not/exist", {}, "No such file"),
        ("synthetic:much", {}, "no address"),
        ("synthetic:1MiB", {"devices": 0}, "1 to 64"),
        ("synthetic:1MiB", {"devices": 65}, "1 to 64"),
        ("synthetic:1MiB", {"devices": True}, "1 to 64"),
        ("synthetic:1MiB", {"devices": "2"}, "1 to 64"),
    ],
)
def test_impossible_orders(tmp_path: Path, source: str, options: dict, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        backup(source, tmp_path / "set", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_devices_must_fit(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(ArgumentError, match="3 files, one per device"):
        backup(address(files), tmp_path / "set", devices=2)
    backup(address(files), tmp_path / "set", devices=None)
    with pytest.raises(ArgumentError, match="3 stripes"):
        restore(tmp_path / "set", address(files), devices=2)
    with pytest.raises(ArgumentError, match="2 files, one per device"):
        restore(tmp_path / "set", address(files[:2]))


@MODES
def test_a_statement_that_fails_at_once_is_reported_at_once(
    tmp_path: Path, files: list[Path], own_process: bool
) -> None:
    with pytest.raises(SQLError) as caught:
        backup(address(files), tmp_path / "set", devices=3, block_size=777, own_process=own_process)
    assert not isinstance(caught.value, StatementLostError)
    assert caught.value.number is not None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_a_prepared_set_restores_and_a_failed_one_does_not(tmp_path: Path, files: list[Path]) -> None:
    backup(address(files), tmp_path / "set", devices=3)
    manifest = tmp_path / "set" / "manifest.json"
    copies = [tmp_path / f"copy-{n}" for n in range(3)]
    (tmp_path / "set").rename(tmp_path / "set.partial")
    restore(tmp_path / "set.partial", address(copies))
    assert [digest(copy) for copy in copies] == [digest(path) for path in files]
    manifest = tmp_path / "set.partial" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"confirmed"', '"failed"'))
    with pytest.raises(StorageError, match="is failed"):
        restore(tmp_path / "set.partial", address(copies))


def test_the_provider_is_the_users_choice(tmp_path: Path, files: list[Path]) -> None:
    there_and_back(files, tmp_path, provider="embedded")
    with pytest.raises(ArgumentError, match="can not be loaded"):
        backup(address(files), tmp_path / "other", devices=3, provider="/does/not/exist.so")
    with pytest.raises((VDError, ArgumentError)):
        backup(address(files), tmp_path / "other", devices=3, provider="system")
    assert not (tmp_path / "other").exists() and not (tmp_path / "other.partial").exists()


@contextmanager
def customers(path: Path) -> Iterator[Callable[[], int]]:
    """A bank whose customers move money as long as this lasts; yields a counter of commits."""
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        with db:
            db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
            db.execute("CREATE TABLE filler (body BLOB)")
            db.execute("CREATE TABLE counter (n INTEGER)")
            db.execute("INSERT INTO counter VALUES (0)")
            db.executemany("INSERT INTO account VALUES (?, 100)", ((n,) for n in range(100)))
            db.executemany("INSERT INTO filler VALUES (randomblob(2000))", (() for _ in range(4000)))
    stop = threading.Event()

    def work() -> None:
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as db:
            n = 0
            while not stop.is_set():
                n += 1
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE account SET balance = balance - 3 WHERE id = ?", (n * 7 % 100,))
                db.execute("UPDATE account SET balance = balance + 3 WHERE id = ?", (n * 13 % 100,))
                db.execute("UPDATE filler SET body = randomblob(2000) WHERE rowid = ?", (n % 4000 + 1,))
                db.execute("UPDATE counter SET n = n + 1")
                db.execute("COMMIT")

    def commits() -> int:
        with closing(sqlite3.connect(path)) as db:
            return db.execute("SELECT n FROM counter").fetchone()[0]

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield commits
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("devices", [1, 4])
def test_a_live_database_is_restored_as_of_one_moment(tmp_path: Path, devices: int) -> None:
    with customers(tmp_path / "bank.db") as commits:
        before = commits()
        backup(f"sqlite:{tmp_path / 'bank.db'}", tmp_path / "set", devices=devices, checksum=True)
        after = commits()
    restore(tmp_path / "set", f"sqlite:{tmp_path / 'copy.db'}", checksum=True)
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT sum(balance) FROM account").fetchone() == (10_000,)
        assert before <= db.execute("SELECT n FROM counter").fetchone()[0] <= after


def test_an_existing_database_is_replaced_only_on_request(tmp_path: Path) -> None:
    with customers(tmp_path / "bank.db"):
        pass
    backup(f"sqlite:{tmp_path / 'bank.db'}", tmp_path / "set")
    target = tmp_path / "target.db"
    with closing(sqlite3.connect(target)) as db, db:
        db.execute("CREATE TABLE precious (x)")
    old = digest(target)
    with pytest.raises(SQLError):
        restore(tmp_path / "set", f"sqlite:{target}")
    assert digest(target) == old
    restore(tmp_path / "set", f"sqlite:{target}", replace=True)
    with closing(sqlite3.connect(target)) as db:
        assert db.execute("SELECT count(*) FROM account").fetchone() == (100,)


def test_a_damaged_set_leaves_the_old_database_alone(tmp_path: Path) -> None:
    with customers(tmp_path / "bank.db"):
        pass
    backup(f"sqlite:{tmp_path / 'bank.db'}", tmp_path / "set", devices=2)
    flip(tmp_path / "set" / "stripe-02-of-02.bak", -1)
    with pytest.raises(VerificationError, match="stripe 2 of 2"):
        restore(tmp_path / "set", f"sqlite:{tmp_path / 'copy.db'}")
    assert not (tmp_path / "copy.db").exists()


@MODES
def test_synthetic_pages_are_checked_where_they_arrive(tmp_path: Path, own_process: bool) -> None:
    backup("synthetic:16MiB:3", tmp_path / "set", devices=8, checksum=True, own_process=own_process)
    restore(tmp_path / "set", "synthetic:16MiB:3", own_process=own_process)
    with pytest.raises(SQLError):
        restore(tmp_path / "set", "synthetic:16MiB:4", own_process=own_process)


def test_many_devices(tmp_path: Path) -> None:
    backup("synthetic:32MiB", tmp_path / "set", devices=64)
    assert len(StoredSet(str(tmp_path / "set")).manifest.stripes) == 64
    restore(tmp_path / "set", "synthetic:32MiB")


def test_nothing_unfinished_remains(tmp_path: Path, files: list[Path]) -> None:
    backup(address(files), tmp_path / "set", devices=3)
    assert recover(str(tmp_path)) == []
