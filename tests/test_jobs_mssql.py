"""Jobs against a server that they reach through a driver."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from standin_driver import Driver

from vdi_ext import VirtualDeviceSet
from vdi_ext.engine import Engine, Synthetic, database_at
from vdi_ext.jobs import (
    ArgumentError,
    ProgressEvent,
    SQLError,
    StatementLostError,
    StorageError,
    backup,
    recover,
    restore,
)
from vdi_ext.storage import StoredSet


@pytest.fixture
def server() -> Driver:
    return Driver(Engine({"sales": database_at("synthetic:4MiB:3"), "copy": Synthetic(4 << 20, 3)}))


def statement(server: Driver) -> str:
    return next(sql for sql in server.statements if sql.startswith(("BACKUP", "RESTORE")))


@pytest.mark.parametrize("request_complete", [True, False], ids=["Complete granted", "Flush only"])
@pytest.mark.parametrize("devices", [1, 3])
def test_a_database_goes_there_and_back(tmp_path: Path, server: Driver, devices: int, request_complete: bool) -> None:
    done = backup(server, tmp_path / "set", devices=devices, database="sales", request_complete=request_complete)
    assert done.database == "sales"
    assert any(message.startswith("Msg 3014, ") for message in done.messages)
    stored = StoredSet(done.path)
    stored.verify()
    assert stored.manifest.statement.startswith("BACKUP DATABASE [sales] TO VIRTUAL_DEVICE = N'")
    assert stored.manifest.statement.endswith(" WITH CHECKSUM")
    assert len(stored.manifest.stripes) == devices
    restored = restore(done.path, server, database="copy", replace=True)
    assert any(message.startswith("Msg 3014, ") for message in restored.messages)
    assert all(connection.closed for connection in server.connections)


def test_a_statement_that_fails_at_once_is_reported_at_once(tmp_path: Path, server: Driver) -> None:
    phases: list[str] = []

    def look(event: ProgressEvent) -> None:
        phases.append(event.phase)

    with pytest.raises(SQLError) as caught:
        backup(server, tmp_path / "set", database="nobody's", progress=look)
    assert not isinstance(caught.value, StatementLostError)
    assert caught.value.number == 911
    assert [text[:9] for text in caught.value.messages] == ["Msg 911, ", "Msg 3013,"]
    assert "opening" not in phases
    assert list(tmp_path.iterdir()) == []


def test_a_sink_that_fails_fails_the_backup(tmp_path: Path, server: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is told, so it reports failure and keeps its log."""
    import errno
    import os

    def fail(fd: int) -> None:
        if ".bak" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        backup(server, tmp_path / "set", database="sales")
    assert list(tmp_path.iterdir()) == []
    assert not any("3014" in str(entry) for entry in server.engine.error_log)
    assert any(entry.number == 3041 for entry in server.engine.error_log)


@pytest.mark.parametrize("phase", ["creating", "configuring", "opening", "inspecting", "flushing"])
def test_an_exception_ends_the_statement_too(tmp_path: Path, server: Driver, phase: str) -> None:
    def stop(event: ProgressEvent) -> None:
        if event.phase == phase:
            raise KeyboardInterrupt

    def look(*command: object) -> None:
        if phase == "inspecting":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup(server, tmp_path / "set", database="sales", progress=stop, devices=2, inspect=look)
    assert list(tmp_path.iterdir()) == []
    assert all(connection.closed for connection in server.connections)
    backup(server, tmp_path / "set", database="sales")  # nobody waits for the first one any more


def test_a_statement_that_waits_is_killed(tmp_path: Path, server: Driver) -> None:
    """It has not come to its devices, so their end does not reach it: its session is ended from another one."""
    waiting = threading.Event()

    def wait(sql: str) -> None:
        if sql.startswith("BACKUP"):
            assert waiting.wait(60)
        elif sql.startswith("KILL"):
            waiting.set()

    server.before = wait

    def stop(event: ProgressEvent) -> None:
        if event.phase == "configuring":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backup(server, tmp_path / "set", database="sales", progress=stop)
    spid = server.connections[0].session.spid
    assert f"KILL {spid}" in server.statements
    assert list(tmp_path.iterdir()) == []


def test_a_lost_connection_loses_the_outcome(tmp_path: Path, server: Driver) -> None:
    """The server has everything, and the connection ends before it says so: the set is kept, and nothing claimed."""

    def lose(event: ProgressEvent) -> None:
        if event.phase == "prepared":
            server.connections[0].session.killed = True

    with pytest.raises(StatementLostError, match="the connection was lost") as caught:
        backup(server, tmp_path / "set", database="sales", progress=lose)
    assert "the outcome is not known" in caught.value.__notes__[0]
    assert [entry.state for entry in recover(str(tmp_path), action="verify")] == ["verified"]


def test_every_option_reaches_the_statement(tmp_path: Path, server: Driver) -> None:
    with pytest.raises(SQLError):  # the stand-in has no such option
        backup(server, tmp_path / "set", database="it's [x]", devices=2, kind="log", copy_only=True, norecovery=True,
               no_truncate=True, name="it's mine", description="d", with_options=["RETAINDAYS = 3"], checksum=False)
    text = statement(server)
    assert text.startswith("BACKUP LOG [it's [x]]] TO VIRTUAL_DEVICE = N'")
    assert text.endswith(" WITH COPY_ONLY, NAME = N'it''s mine', DESCRIPTION = N'd', NORECOVERY, NO_TRUNCATE, "
                         "RETAINDAYS = 3")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "which database"),
        ({"database": "x", "kind": "everything"}, "kind must be"),
        ({"database": "x", "norecovery": True}, "backups of the log"),
        ({"database": "x", "kind": "differential", "copy_only": True}, "COPY_ONLY"),
        ({"database": "x", "devices": 65}, "1 to 64"),
    ],
)
def test_what_can_not_be_is_refused_before_anything(
    tmp_path: Path, server: Driver, options: dict, words: str
) -> None:
    with pytest.raises(ArgumentError, match=words):
        backup(server, tmp_path / "set", **options)
    assert not any(sql.startswith("BACKUP") for sql in server.statements)
    assert list(tmp_path.iterdir()) == []


def test_a_statement_of_ones_own(tmp_path: Path, server: Driver) -> None:
    sql = "BACKUP DATABASE sales TO VIRTUAL_DEVICE = '{device}', VIRTUAL_DEVICE = '{device2}' WITH BLOCKSIZE = 4096"
    done = backup(server, tmp_path / "set", devices=2, database="sales", sql=sql)
    assert StoredSet(done.path).manifest.configuration["block_size"] == 4096
    back = "RESTORE DATABASE [copy] FROM VIRTUAL_DEVICE='{device}', VIRTUAL_DEVICE='{device2}' WITH REPLACE, " \
           "BLOCKSIZE = 4096"
    restore(done.path, server, database="copy", sql=back)
    for wrong in ("SELECT '{device}', '{device2}'", "BACKUP DATABASE sales TO VIRTUAL_DEVICE = '{device}'"):
        with pytest.raises(ArgumentError, match="the statement"):
            backup(server, tmp_path / "other", devices=2, database="sales", sql=wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_the_set_is_gone_with_the_job(tmp_path: Path, server: Driver) -> None:
    names: list[str] = []

    def look(device_set: VirtualDeviceSet, device: int, command: object) -> None:
        names.append(device_set.name)

    backup(server, tmp_path / "set", database="sales", inspect=look)
    with VirtualDeviceSet.create(names[0]):  # its name is free again
        pass
