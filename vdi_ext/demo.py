"""``./run demo [PATH ...]``: a live database through virtual devices and back, and one buffer in two processes.

PATH: real backup files; several are the stripes of one backup.
"""

from __future__ import annotations

import argparse
import filecmp
import hashlib
import multiprocessing
import os
import random
import sqlite3
import sys
import tempfile
import threading
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

from . import jobs
from ._core.buffer import BufferHandle
from ._core.device_set import VirtualDeviceSet
from .cli import terminal_progress
from .constants import CommandCode, Feature
from .server import ServerDeviceSet

ACCOUNTS = 1000
OPENING_BALANCE = 1000
HISTORY = 220_000  # rows of about a kilobyte
DEVICES = 4


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; raises where anything is not as it should be."""
    parser = argparse.ArgumentParser(prog="./run demo", description="Shows virtual devices at work.")
    parser.add_argument("paths", nargs="*", type=Path, metavar="PATH", help="real backup files: the stripes of one")
    paths = parser.parse_args(arguments).paths
    with tempfile.TemporaryDirectory(prefix="vdi-demo-") as folder:
        say("A bank in a SQLite file, with customers who do not stop")
        live_database(Path(folder))
        if paths:
            say(f"\nA real backup, byte for byte: {', '.join(path.name for path in paths)}")
            real_backup(Path(folder), paths)
        say("\nOne buffer, two processes, no copy")
        handle_between_processes()
    say("\nAll of it held.")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


def check(fact: bool, text: str) -> None:
    say(f"  {'ok ' if fact else 'NO '} {text}")
    if not fact:
        sys.exit(f"the demonstration failed: {text}")


# ---- a live database ----


def live_database(folder: Path) -> None:
    database, restored = folder / "bank.db", folder / "restored.db"
    create_bank(database)
    say(f"  {database.stat().st_size / 1e6:.0f} MB, {ACCOUNTS} accounts with {OPENING_BALANCE} each")
    context = multiprocessing.get_context("spawn")
    stop, started = context.Event(), context.Event()
    customers = context.Process(target=transfer_money, args=(str(database), started, stop), name="customers")
    customers.start()
    try:
        if not started.wait(60):
            sys.exit("the customers did not come")
        before = commits(database)
        with terminal_progress() as progress:
            result = jobs.backup(f"sqlite:{database}", str(folder / "bank"), devices=DEVICES, progress=progress)
        after = commits(database)
    finally:
        stop.set()
        customers.join(60)
    size = result.size / 1e6
    say(f"  {size:.0f} MB over {DEVICES} devices in {result.seconds:.2f} s, {size / result.seconds:.0f} MB/s")
    with terminal_progress() as progress:
        jobs.restore(str(folder / "bank"), f"sqlite:{restored}", progress=progress)
    with sqlite3.connect(restored) as connection:
        integrity = connection.execute("PRAGMA integrity_check").fetchone()[0]
        total = connection.execute("SELECT sum(balance) FROM account").fetchone()[0]
    connection.close()
    now = commits(restored)
    check(integrity == "ok", "the restored file passes SQLite's integrity check")
    check(total == ACCOUNTS * OPENING_BALANCE, f"no money was lost or made: {total} in all accounts")
    check(before <= now <= after, f"it is one moment during the backup: commit {now}, between {before} and {after}")


def create_bank(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(f"""
        PRAGMA journal_mode = WAL;
        PRAGMA synchronous = OFF;
        CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
        CREATE TABLE history (id INTEGER PRIMARY KEY, note BLOB NOT NULL);
        CREATE TABLE counter (commits INTEGER NOT NULL);
        INSERT INTO counter VALUES (0);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
            INSERT INTO account SELECT i, {OPENING_BALANCE} FROM n;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {HISTORY})
            INSERT INTO history SELECT i, randomblob(950) FROM n;
        PRAGMA wal_checkpoint(TRUNCATE);
    """)
    connection.close()


def commits(path: Path) -> int:
    connection = sqlite3.connect(path, timeout=60)
    count = connection.execute("SELECT commits FROM counter").fetchone()[0]
    connection.close()
    return int(count)


def transfer_money(path: str, started: Event, stop: Event) -> None:
    """Commit transfers between accounts until told to stop; runs in a process of its own."""
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    connection.execute("PRAGMA synchronous = OFF")
    chance = random.Random(1)
    while not stop.is_set():
        giver, taker = chance.sample(range(1, ACCOUNTS + 1), 2)
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE account SET balance = balance - 7 WHERE id = ?", (giver,))
        connection.execute("UPDATE history SET note = randomblob(950) WHERE id = ?", (chance.randint(1, HISTORY),))
        connection.execute("UPDATE account SET balance = balance + 7 WHERE id = ?", (taker,))
        connection.execute("UPDATE counter SET commits = commits + 1")
        connection.execute("COMMIT")
        started.set()
    connection.close()


# ---- a real backup ----


def real_backup(folder: Path, paths: list[Path]) -> None:
    address = "replay:" + ",".join(str(path) for path in paths)
    with terminal_progress() as progress:
        jobs.backup(address, str(folder / "real"), devices=len(paths), progress=progress)
        jobs.restore(str(folder / "real"), address, progress=progress)  # fails on a byte that is not the file's
    stripes = sorted((folder / "real").glob("*.bak"))
    same = all(filecmp.cmp(stripe, path, shallow=False) for stripe, path in zip(stripes, paths, strict=True))
    check(same, f"{sum(path.stat().st_size for path in paths)} bytes went through and came back the same")


# ---- a buffer in two processes ----


def handle_between_processes() -> None:
    context = multiprocessing.get_context("spawn")
    with VirtualDeviceSet.create(provider="embedded") as vds:
        server = threading.Thread(target=serve, args=(vds.name,), name="demo-server")
        server.start()
        vds.get_configuration(timeout=30)
        for command in vds.open_device():
            with command:
                if command.code == CommandCode.FLUSH:
                    command.complete()
                if command.code != CommandCode.WRITE:
                    continue
                handle = vds.get_buffer_handle(command)
                ours, theirs = context.Pipe()
                other = context.Process(target=hash_elsewhere, args=(theirs,), name="hasher")
                other.start()
                theirs.close()
                ours.send(handle)
                pid, digest = ours.recv()
                other.join(60)
                say(f"  process {os.getpid()} got a command of {command.size} bytes, and sent handle {handle.value:#x}")
                say(f"  process {pid} mapped it and hashed it: {digest[:16]}...")
                check(digest == hashlib.sha256(command).hexdigest(), "both see the same bytes")
        server.join(60)


def serve(name: str) -> None:
    """SQL Server's half: one command with random data."""
    with ServerDeviceSet.open(name, provider="embedded") as server:
        server.begin_configuration(Feature.WRITE_MEDIA, 512, 0, 1 << 20)
        server.request_buffers(1 << 20, 0, 1)
        server.end_configuration()
        device = server.open_device(name)
        buffer = server.allocate_buffer(1 << 20)
        with memoryview(buffer) as view:
            view[:] = os.urandom(len(view))
        device.send_command(CommandCode.WRITE, buffer).result(60)
        device.send_command(CommandCode.FLUSH).result(60)
        device.close_device()


def hash_elsewhere(connection: Connection) -> None:
    handle: BufferHandle = connection.recv()
    with VirtualDeviceSet.open_in_secondary(handle.set_name) as vds, vds.map_buffer_handle(handle) as shared:
        connection.send((os.getpid(), hashlib.sha256(shared).hexdigest()))


if __name__ == "__main__":
    sys.exit(main())
