"""One of four processes is killed, at a named phase: the server, the primary client that runs a backup, or one of two
secondaries that have mapped a buffer of it. Nobody hangs, nothing is left, and no set looks finished that is not.

Seeded: the number of rounds of each phase is VDI_EXT_KILL_ROUNDS (10 where not set).
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from vdi_ext.jobs import backup, recover, restore
from vdi_ext.storage import StoredSet

ROUNDS = int(os.environ.get("VDI_EXT_KILL_ROUNDS", "10"))
BEFORE_MAPPED = ("creating", "configuring", "opening")
PHASES = (*BEFORE_MAPPED, "mapped", "transferring", "flushing", "prepared", "publishing", "closing")
AFTER_OUTCOME = ("publishing", "closing")  # the server has reported success by then
BOUND = 20.0  # seconds in which everybody must have ended
SOURCE = "synthetic:2MiB:5"
HERE = Path(__file__).parent


class Peer:
    """A process that speaks JSON lines."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._buffer = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def send(self, order: object) -> None:
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the one that was killed

    def hear(self, timeout: float = BOUND) -> dict | None:
        """The next line; None when it has ended."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                pytest.fail(f"{self.process.args[1]} said nothing for {timeout} s")
            piece = os.read(self.process.stdout.fileno(), 65536)
            if not piece:
                return None
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def end(self) -> str:
        """Let it end; what it wrote to standard error."""
        try:
            _, errors = self.process.communicate(timeout=BOUND)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            pytest.fail(f"{self.process.args[1]} did not end within {BOUND} s")
        return errors.decode()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def kill(pid: int) -> None:
    """End any process by SIGKILL, and wait until it has."""
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        assert select.select([fd], [], [], BOUND)[0]
    finally:
        os.close(fd)


def gone(fd: int) -> bool:
    """Whether the process of a pidfd has ended, within the bound."""
    return bool(select.select([fd], [], [], BOUND)[0])


def own_sockets() -> set[str]:
    """Rendezvous sockets that this process holds; those of processes that have ended went with them."""
    inodes = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            inodes.add(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # the descriptor of the listing
            continue
    table = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {row[-1] for row in table if row[-1].startswith("@vdi_ext/") and f"socket:[{row[6]}]" in inodes}


@contextmanager
def mappers(count: int) -> Iterator[list[Peer]]:
    peers = [Peer(str(HERE / "mapper_process.py")) for _ in range(count)]
    try:
        for peer in peers:
            assert peer.hear() == {"ready": True}
        yield peers
    finally:
        for peer in peers:
            peer.kill()


class Round:
    """One backup of which one process is killed."""

    def __init__(self, directory: Path, phase: str, chance: random.Random, secondaries: list[Peer]) -> None:
        self.phase = phase
        self.directory = directory
        self.devices = chance.choice([1, 2, 3])
        self.granted = chance.random() < 0.5
        self.secondaries = secondaries if phase not in BEFORE_MAPPED else []
        kwargs = {"devices": self.devices, "request_complete": self.granted, "max_transfer_size": 65536}
        hold = [phase] if phase in BEFORE_MAPPED else ["mapped", phase]
        order = {"run": "backup", "args": [SOURCE, str(directory / "set")], "kwargs": kwargs, "hold": hold}
        self.job = Peer(str(HERE / "job_process.py"), json.dumps(order))
        self.server_pid = 0
        self.victim = ""
        self.pick = chance.random()

    def __str__(self) -> str:
        return f"{self.victim} killed while {self.phase}, {self.devices} devices, Complete {self.granted}"

    def run(self) -> str:
        self._reach()
        candidates = {"primary": self.job.pid}
        server = 0
        if self.server_pid and Path(f"/proc/{self.server_pid}").exists():
            server = os.pidfd_open(self.server_pid)
            if not select.select([server], [], [], 0)[0]:
                candidates["server"] = self.server_pid
        for number, secondary in enumerate(self.secondaries, 1):
            candidates[f"secondary {number}"] = secondary.pid
        self.victim = list(candidates)[int(self.pick * len(candidates))]
        try:
            kill(candidates[self.victim])
            for _ in range(3):
                self.job.send("go on")
            self._check_secondaries()
            self._check_job()
            assert not server or gone(server), f"{self}: the server lives on"
        finally:
            self.job.kill()
            if server:
                os.close(server)
        self._check_set()
        return self.victim

    def _reach(self) -> None:
        while (said := self.job.hear()) is not None and said.get("held") is not None:
            self.server_pid = max(said["children"], default=self.server_pid)
            if said["held"] == "mapped":
                for secondary in self.secondaries:
                    secondary.send(said["handle"])
                digests = {json.dumps(secondary.hear()) for secondary in self.secondaries}
                assert len(digests) == 1 and "mapped" in digests.pop()
            if said["held"] == self.phase:
                return
            self.job.send("go on")
        pytest.fail(f"the job never came to {self.phase}: {said} {self.job.end()}")

    def _check_secondaries(self) -> None:
        # Their mapping stays, whoever has died; only what it holds is no longer promised.
        for number, secondary in enumerate(self.secondaries, 1):
            if self.victim == f"secondary {number}":
                continue
            secondary.send("go")
            assert len((secondary.hear() or {}).get("again", "")) == 64, f"{self}: {secondary.process.poll()}"
            assert "released" in (secondary.hear() or {}), f"{self}: {secondary.process.poll()}"

    def _check_job(self) -> None:
        said = None
        while (line := self.job.hear()) is not None:
            said = line
        errors = self.job.end()
        code = self.job.process.returncode
        if self.victim == "primary":
            assert code == -signal.SIGKILL
        elif self.victim == "server" and self.phase not in AFTER_OUTCOME:
            assert code == 1, f"{self}: {said} {errors}"
            assert said["ended"] == "StatementLostError" and f"process {self.server_pid} " in said["message"], said
            assert errors == "", f"{self}: {errors}"
        else:
            assert (code, said, errors) == (0, {"ended": "well"}, ""), f"{self}: {said} {errors}"

    def _check_set(self) -> None:
        left = sorted(path.name for path in self.directory.iterdir())
        if self.victim.startswith("secondary") or (self.victim == "server" and self.phase in AFTER_OUTCOME):
            assert left == ["set"], f"{self}: {left}"
        elif self.victim == "server":
            # Failed, and then nothing is left of it; or the outcome is not known, and then all of it is.
            assert left in ([], ["set.partial"]), f"{self}: {left}"
        else:
            assert left in ([], ["set"], ["set.partial"]), f"{self}: {left}"
        if left == ["set"]:
            stored = StoredSet(str(self.directory / "set"))
            assert stored.state == "confirmed", f"{self}: {stored.state}"
            restore(stored.path, SOURCE, verify_first=True, own_process=False)
        for entry in recover(str(self.directory), action="verify"):
            allowed = ("verified",) if self.victim == "server" else ("verified", "writing")
            assert entry.state in allowed, f"{self}: {entry}"
            if entry.state == "verified":
                restore(entry.path, SOURCE, own_process=False)


@pytest.mark.parametrize("victim", ["server", "primary"])
@pytest.mark.parametrize("phase", ["configuring", "opening"])  # one device is held, the other one transfers
def test_a_killed_restore_leaves_the_old_database(tmp_path: Path, phase: str, victim: str) -> None:
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    for path, rows in ((source, 5000), (target, 3)):
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("CREATE TABLE t (x)")
            db.executemany("INSERT INTO t VALUES (randomblob(4000))", (() for _ in range(rows)))
    old = target.read_bytes()
    backup(f"sqlite:{source}", tmp_path / "set", devices=2, own_process=False)
    order = {"run": "restore", "args": [str(tmp_path / "set"), f"sqlite:{target}"],
             "kwargs": {"replace": True, "max_transfer_size": 65536}, "hold": [phase]}
    job = Peer(str(HERE / "job_process.py"), json.dumps(order))
    try:
        held = job.hear()
        assert held is not None and held.get("held") == phase
        server = os.pidfd_open(held["children"][0])
        kill(held["children"][0] if victim == "server" else job.pid)
        job.send("go on")
        said = job.hear()
        if victim == "server":
            assert said is not None and said["ended"] == "StatementLostError", said
        assert job.end() == ""
        assert gone(server)
        os.close(server)
    finally:
        job.kill()
    assert target.read_bytes() == old
    with closing(sqlite3.connect(target)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    StoredSet(str(tmp_path / "set")).verify()
    restore(tmp_path / "set", f"sqlite:{target}", replace=True, own_process=False)
    with closing(sqlite3.connect(target)) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (5000,)
    left = {path.name for path in tmp_path.iterdir()} - {"set", "source.db", "target.db"}
    # What a killed server was writing beside the database may remain; it is no database and in nobody's way.
    assert victim == "server" or not left, left


@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_process_harms_nobody_else(tmp_path: Path, phase: str) -> None:
    killed: Counter[str] = Counter()
    with mappers(2) as secondaries:
        for number in range(ROUNDS):
            directory = tmp_path / str(number)
            directory.mkdir()
            victim = Round(directory, phase, random.Random(f"{phase} {number}"), secondaries).run()
            killed[victim] += 1
            if victim.startswith("secondary"):
                index = int(victim[-1]) - 1
                secondaries[index].kill()
                secondaries[index] = Peer(str(HERE / "mapper_process.py"))
                assert secondaries[index].hear() == {"ready": True}
    assert sum(killed.values()) == ROUNDS
    if ROUNDS >= 10:
        assert killed["primary"] and (phase in ("creating", *AFTER_OUTCOME) or killed["server"]), killed
    assert own_sockets() == set()
