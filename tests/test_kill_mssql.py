"""The client of a BACKUP over TDS is killed, at a seeded instant: no session waits, and no backup is lost.

Whatever msdb lists is listed here too, verifies and restores; whatever it does not list truncated no log. So the
database can be restored to its last change, whenever the client died. The number of rounds of each phase is
VDI_EXT_KILL_ROUNDS divided by ten, at least one.
"""

from __future__ import annotations

import json
import random
import signal
import threading
import time
from pathlib import Path

import pytest
from engine_statements import content
from tds_clients import LOGIN, PASSWORD
from test_kill import HERE, ROUNDS, Peer, kill

from vdi_ext import VDError
from vdi_ext.engine import Engine, Synthetic
from vdi_ext.engine.tds import Endpoint
from vdi_ext.jobs import SQLError, backup, recover, restore_chain
from vdi_ext.storage import StoredSet

PHASES = ("configuring", "opening", "mapped", "transferring", "flushing", "prepared", "closing", "publishing")
DRIVERS = ("mssql-python", "pymssql", "pyodbc", "python-tds")
BOUND = 20.0


def address(endpoint: Endpoint, driver: str) -> str:
    return f"mssql://{LOGIN}@{endpoint.host}:{endpoint.port}?driver={driver}&encrypt=no&database=db"


@pytest.mark.parametrize("number", range(max(1, ROUNDS // 10)))
@pytest.mark.parametrize("phase", PHASES)
def test_no_backup_is_lost_with_its_client(tmp_path: Path, phase: str, number: int) -> None:
    chance = random.Random(f"{phase} {number}")
    engine = Engine({"db": Synthetic(2 << 20, 5, "FULL")})
    with Endpoint(engine, {LOGIN: PASSWORD}) as endpoint:
        source = address(endpoint, "pymssql")
        backup(source, tmp_path / "full", password=PASSWORD)
        for page in range(0, 256, 8):
            engine.change("db", page)
        listed = interrupted(endpoint, tmp_path, phase, chance)
        assert idle(endpoint), "a session is left"
        assert len(engine.history.backups) in (1, 2)
        if len(engine.history.backups) == 2:
            assert listed, "msdb lists a backup that nobody has"
        (entry,) = recover(str(tmp_path), action="resolve", server=source, password=PASSWORD) or [None]
        if len(engine.history.backups) == 2:
            assert entry is None or entry.state == "published", entry
            StoredSet(str(tmp_path / "set")).verify()
        else:
            assert not (tmp_path / "set").exists()
        engine.change("db", 8)
        backup(source, tmp_path / "after", kind="log", password=PASSWORD)  # and nobody is in its way
        restore_chain([tmp_path], source, to="again", password=PASSWORD)
        assert content(engine, "again") == content(engine, "db")


@pytest.mark.parametrize(
    ("driver", "phase", "number"),
    [(driver, phase, signal.SIGINT) for driver in DRIVERS for phase in ("configuring", "transferring")]
    + [("pymssql", "prepared", signal.SIGTERM), ("pyodbc", "closing", signal.SIGINT)],
)
def test_a_signal_ends_both_sides(tmp_path: Path, driver: str, phase: str, number: int) -> None:
    """Neither half a backup nor a waiting server; where the server has reported success, the set counts."""
    engine = Engine({"db": Synthetic((64 if phase == "transferring" else 2) << 20, 5, "FULL")})
    (tmp_path / "password").write_text(PASSWORD)
    with Endpoint(engine, {LOGIN: PASSWORD}) as endpoint:
        arguments = ["backup", address(endpoint, driver), str(tmp_path / "set"), "--password-file",
                     str(tmp_path / "password"), "--max-transfer-size", "65536"]
        order = {"run": "cli", "args": arguments, "hold": [phase]}
        job = Peer(str(HERE / "job_process.py"), json.dumps(order))
        try:
            assert (job.hear() or {}).get("held") == phase
            job.process.send_signal(number)
            job.send("go on")
            errors = job.end()
        finally:
            job.kill()
        assert job.process.returncode == (130 if number == signal.SIGINT else 143), errors
        assert errors.count("\n") == 1
        assert idle(endpoint), "a session is left"
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != "password")
    assert left == (["set"] if engine.history.backups else []), errors
    if left:
        StoredSet(str(tmp_path / "set")).verify()


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_server_that_goes_ends_the_job(tmp_path: Path, driver: str) -> None:
    """In the middle of the bytes: the connections end, and the set with them."""
    endpoint = Endpoint(Engine({"db": Synthetic(2 << 20, 5)}), {LOGIN: PASSWORD})
    gone: list[threading.Thread] = []

    def end(*command: object) -> None:
        if not gone:
            gone.append(threading.Thread(target=endpoint.close))
            gone[0].start()

    try:
        with pytest.raises((SQLError, VDError)):
            backup(address(endpoint, driver), tmp_path / "set", password=PASSWORD, inspect=end)
    finally:
        endpoint.close()
        gone[0].join()
    assert list(tmp_path.iterdir()) == []


def interrupted(endpoint: Endpoint, directory: Path, phase: str, chance: random.Random) -> bool:
    """A backup of the log whose client is killed; whether a set is left that counts."""
    kwargs = {
        "kind": "log", "devices": chance.choice([1, 2]), "request_complete": chance.random() < 0.5,
        "max_transfer_size": 65536, "password": PASSWORD,
    }  # fmt: skip
    order = {"run": "backup", "args": [address(endpoint, chance.choice(DRIVERS)), str(directory / "set")],
             "kwargs": kwargs, "hold": [phase]}
    job = Peer(str(HERE / "job_process.py"), json.dumps(order))
    try:
        held = job.hear()
        if held is not None and held.get("held") == phase:
            if chance.random() < 0.5:
                job.send("go on")  # dies on its way on
                time.sleep(chance.random() * 0.02)
            kill(job.pid)
        else:
            assert held == {"ended": "well"}  # its stripes were too short for this phase
    finally:
        job.kill()
    return (directory / "set").exists() or any(entry.state == "prepared" for entry in recover(str(directory)))


def idle(endpoint: Endpoint) -> bool:
    deadline = time.monotonic() + BOUND
    while endpoint.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    return not endpoint.connections
