"""Jobs over TDS with the drivers that people have, from this process and from the command line."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tds_clients import LOGIN, PASSWORD

from vdi_ext.engine import Engine, Synthetic
from vdi_ext.engine.tds import Endpoint
from vdi_ext.jobs import SQLError, StatementLostError, StorageError, backup, recover, restore, restore_chain
from vdi_ext.jobs.server import Server
from vdi_ext.storage import StoredSet

SIZE = 2 << 20
BOUND = 20.0
DRIVERS = ["mssql-python", "pymssql", "pyodbc", "python-tds"]

#: What each lets through of the errors of a statement: the table of docs/drivers.md.
ERRORS = {"mssql-python": [911], "pymssql": [911, 3013], "pyodbc": [911], "python-tds": [911, 3013]}


@pytest.fixture
def engine() -> Engine:
    databases = {"db": Synthetic(SIZE, 5, "FULL"), "simple": Synthetic(SIZE, 6), "copy": Synthetic(SIZE, 5)}
    return Engine(databases, server_name="STANDIN")


@pytest.fixture
def endpoint(engine: Engine) -> Iterator[Endpoint]:
    with Endpoint(engine, {LOGIN: PASSWORD}) as made:
        yield made


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


def address(endpoint: Endpoint, driver: str, database: str | None = "db", tls: str = "encrypt=no") -> str:
    name = f"&database={database}" if database else ""
    return f"mssql://{LOGIN}@{endpoint.host}:{endpoint.port}?driver={driver}&{tls}{name}"


def all_gone(endpoint: Endpoint) -> bool:
    """Whether no session is left, within the bound: a server hears of an end of a connection a little later."""
    deadline = time.monotonic() + BOUND
    while endpoint.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    return not endpoint.connections


@pytest.mark.parametrize("request_complete", [True, False], ids=["Complete granted", "Flush only"])
def test_there_and_back(endpoint: Endpoint, driver: str, tmp_path: Path, request_complete: bool) -> None:
    source = address(endpoint, driver)
    done = backup(source, tmp_path / "set", devices=2, password=PASSWORD, stats=10, request_complete=request_complete)
    numbers = [message.split(",")[0] for message in done.messages]
    assert "Msg 3211" in numbers and numbers[-1] == "Msg 3014"
    manifest = StoredSet(done.path).manifest
    assert manifest.source.startswith("mssql://") and PASSWORD not in json.dumps(vars(manifest), default=str)
    assert manifest.statement.endswith(" WITH CHECKSUM, STATS = 10")
    assert manifest.backup["copy_only"] is False and manifest.backup["finished"] is not None
    back = restore(done.path, source, database="copy", replace=True, password=PASSWORD)
    assert back.messages[-1].startswith("Msg 3014, ")
    assert all_gone(endpoint)


def test_under_tls(engine: Engine, driver: str, tmp_path: Path) -> None:
    with Endpoint(engine, {LOGIN: PASSWORD}, encrypt="required") as endpoint:
        certificate = tmp_path / "certificate.pem"
        certificate.write_bytes(endpoint.certificate)
        # FreeTDS believes any certificate; python-tds takes none that it was not given.
        tls = "encrypt=yes" + {"mssql-python": "&trust_server_certificate=yes",
                               "python-tds": f"&trust_server_certificate=yes&ca_file={certificate}"}.get(driver, "")
        backup(address(endpoint, driver, tls=tls), tmp_path / "set", password=PASSWORD)
    StoredSet(str(tmp_path / "set")).verify()


def test_tds_8_with_the_server_s_own_certificate(engine: Engine, tmp_path: Path) -> None:
    with Endpoint(engine, {LOGIN: PASSWORD}, encrypt="strict") as endpoint:
        certificate = tmp_path / "certificate.pem"
        certificate.write_bytes(endpoint.certificate)
        tls = f"encrypt=strict&ca_file={certificate}"
        backup(address(endpoint, "mssql-python", tls=tls), tmp_path / "set", password=PASSWORD)
    StoredSet(str(tmp_path / "set")).verify()


def test_the_errors_that_a_driver_lets_through(endpoint: Endpoint, driver: str, tmp_path: Path) -> None:
    """The first one always; at once, and not when a time has run out."""
    with pytest.raises(SQLError) as caught:
        backup(address(endpoint, driver, "nobody"), tmp_path / "set", password=PASSWORD)
    assert not isinstance(caught.value, StatementLostError)
    assert caught.value.number == 911
    assert [int(text.split(",")[0].removeprefix("Msg ")) for text in caught.value.messages] == ERRORS[driver]
    assert "Database 'nobody' does not exist." in caught.value.messages[0]
    assert list(tmp_path.iterdir()) == []
    assert all_gone(endpoint)


def test_a_server_that_refuses_and_one_that_is_not_there(endpoint: Endpoint, driver: str, tmp_path: Path) -> None:
    for _ in range(2):  # pymssql tells the second time less
        with pytest.raises(SQLError) as caught:
            backup(address(endpoint, driver), tmp_path / "set", password="a wrong one")
        assert caught.value.number == 18456
        assert "a wrong one" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("driver", ["pymssql", "pyodbc", "python-tds"])
def test_nobody_listens(driver: str, tmp_path: Path) -> None:
    nobody = f"mssql://sa@127.0.0.1:1?driver={driver}&login_timeout=1&database=x"
    with pytest.raises(SQLError, match="can not be reached") as caught:
        backup(nobody, tmp_path / "set", password="geheim")
    assert "geheim" not in str(caught.value)


def test_a_sink_that_fails(
    endpoint: Endpoint, engine: Engine, driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fail(fd: int) -> None:
        if ".bak" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        backup(address(endpoint, driver), tmp_path / "set", password=PASSWORD)
    assert {18210, 3041} <= {entry.number for entry in engine.error_log}
    assert engine.history.backups == () and list(tmp_path.iterdir()) == []
    assert all_gone(endpoint)


def test_an_exception_of_a_stage(endpoint: Endpoint, engine: Engine, driver: str, tmp_path: Path) -> None:
    def stop(*command: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        backup(address(endpoint, driver), tmp_path / "set", password=PASSWORD, inspect=stop, devices=2)
    assert engine.history.backups == () and list(tmp_path.iterdir()) == []
    assert all_gone(endpoint)


def test_a_session_that_is_killed(endpoint: Endpoint, engine: Engine, driver: str, tmp_path: Path) -> None:
    """From another session, as an administrator may: the job ends, and so does its set."""
    killed: list[int] = []

    def kill(*command: object) -> None:
        if not killed:
            with_backup = max(engine.sessions, key=lambda session: session.spid)
            killed.append(with_backup.spid)
            Server(address(endpoint, driver), PASSWORD).kill(with_backup.spid)

    with pytest.raises(SQLError):
        backup(address(endpoint, driver), tmp_path / "set", password=PASSWORD, inspect=kill)
    assert engine.history.backups == () and list(tmp_path.iterdir()) == []
    assert all_gone(endpoint)


def test_a_log_chain(endpoint: Endpoint, engine: Engine, driver: str, tmp_path: Path) -> None:
    source = address(endpoint, driver)
    for number, kind in enumerate(("full", "log", "differential", "log")):
        backup(source, tmp_path / str(number), kind=kind, password=PASSWORD)
        engine.change("db", 8 * number)
    backup(source, tmp_path / "tail", kind="log", norecovery=True, password=PASSWORD)
    done = restore_chain([tmp_path], source, to="again", password=PASSWORD)
    assert [Path(result.path).name for result in done] == ["0", "2", "3", "tail"]


# ---- the command line


def cli(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "vdi_ext", *map(str, arguments)], capture_output=True, text=True,
                          timeout=60, stdin=subprocess.DEVNULL, env={**os.environ, "SECRET": PASSWORD})


def test_from_the_command_line(endpoint: Endpoint, tmp_path: Path) -> None:
    source = address(endpoint, "mssql-python")
    done = cli("backup", source, tmp_path / "{database}-{kind}", "--password-env", "SECRET", "--devices", 2, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert PASSWORD not in done.stdout
    done = cli("restore", tmp_path / "db-full", source, "--to", "another", "--password-command", "printenv SECRET")
    assert done.returncode == 0, done.stderr
    assert "restored another on mssql" in done.stdout + done.stderr
    done = cli("backup", address(endpoint, "pymssql", "nobody"), tmp_path / "x", "--password-env", "SECRET", "--quiet")
    assert done.returncode == 3 and "911" in done.stderr and "3013" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db-full"]


def test_several_databases(endpoint: Endpoint, tmp_path: Path) -> None:
    source = address(endpoint, "python-tds", None)
    assert cli("backup", source, tmp_path / "{server}-{database}", "--database", "USER_DATABASES,-copy",
               "--password-env", "SECRET", "--quiet").returncode == 0
    done = cli("backup", source, tmp_path / "{database}-log", "--database", "db,simple", "--log", "--password-env",
               "SECRET", "--quiet")
    assert done.returncode == 0, done.stderr
    assert "simple: skipped: its recovery model is SIMPLE" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["STANDIN-db", "STANDIN-simple", "db-log"]
    done = cli("backup", source, tmp_path / "one", "--database", "db,simple", "--password-env", "SECRET")
    assert done.returncode == 2 and "{database}" in done.stderr
    done = cli("backup", source, tmp_path / "{database}-x", "--database", "db,nobody", "--password-env", "SECRET")
    assert done.returncode == 2 and "no database 'nobody'" in done.stderr


def test_one_that_fails_does_not_keep_the_others(endpoint: Endpoint, tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    done = cli("backup", address(endpoint, "pymssql", None), tmp_path / "{database}", "--database", "db,simple",
               "--password-env", "SECRET", "--quiet")
    assert done.returncode == 5
    assert "db: failed: " in done.stdout and f"simple: backed up to {tmp_path / 'simple'}" in done.stdout


def test_through_a_pipe(endpoint: Endpoint, tmp_path: Path) -> None:
    source = address(endpoint, "pymssql")
    command = [sys.executable, "-m", "vdi_ext", "pipe"]
    environment = {**os.environ, "SECRET": PASSWORD}
    one = subprocess.Popen([*command, "backup", source, "--password-env", "SECRET", "--quiet"], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, env=environment)
    two = subprocess.run([*command, "restore", source, "--password-env", "SECRET", "--quiet", "--database", "copy",
                          "--replace"], stdin=one.stdout, capture_output=True, env=environment, timeout=60, check=False)
    one.stdout.close()
    errors = one.communicate(timeout=60)[1]
    assert (one.returncode, two.returncode) == (0, 0), errors + two.stderr


def test_a_prepared_set_is_resolved_from_the_command_line(
    endpoint: Endpoint, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement has succeeded, and the client dies before it publishes."""
    from vdi_ext.storage import SetWriter

    monkeypatch.setattr(SetWriter, "confirm", lambda writer, messages: str(writer.path))
    backup(address(endpoint, "pymssql"), tmp_path / "set", password=PASSWORD)
    assert [entry.state for entry in recover(str(tmp_path))] == ["prepared"]
    done = cli("recover", tmp_path, "--resolve", "--server", address(endpoint, "pyodbc"), "--password-env", "SECRET")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("published")
    StoredSet(str(tmp_path / "set")).verify()
