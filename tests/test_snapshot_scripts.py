"""Servers that take snapshots otherwise than the stand-in does, or fail at the worst moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from test_jobs_servers import Server, state

from vdi_ext import CommandCode, CompletionCode, backup_snapshot, restore_snapshot
from vdi_ext.jobs import FreezeTimeoutError, SQLError, StatementLostError, places, recover
from vdi_ext.jobs.statements import Statement
from vdi_ext.storage import StoredSet

PREPARE, SNAPSHOT, FLUSH, COMPLETE, CLEAR_ERROR = (
    CommandCode.PREPARE_TO_FREEZE, CommandCode.SNAPSHOT, CommandCode.FLUSH, CommandCode.COMPLETE,
    CommandCode.CLEAR_ERROR,
)  # fmt: skip
REFUSED = CompletionCode.OPERATION_ABORTED
Script = Callable[[Server], None]


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Take a snapshot of as many databases, a, b, ..., as there are scripts."""

    def run(*scripts: Script, **options: object) -> object:
        names = [chr(ord("a") + number) for number in range(len(scripts))]
        by_name = dict(zip(names, scripts, strict=True))

        def submit(text: str, name: str, *rest: object) -> Statement:
            return Server(by_name[name], [text.split("VIRTUAL_DEVICE = N'")[1].split("'")[0]], False)

        monkeypatch.setattr(places, "submit", submit)
        options.setdefault("freeze_command", f"touch {tmp_path}/ran")
        return backup_snapshot(["synthetic:1M"] * len(scripts), tmp_path / "set", databases=names, **options)

    return run


def plain(server: Server) -> None:
    server.write(0, b"a" * 512)
    assert server.send(0, PREPARE) == 0
    server.write(0, b"b" * 512)
    assert server.send(0, SNAPSHOT) == 0


def refused(server: Server) -> None:
    """Is refused at one of its commands, or aborted before, and says what a server says then."""
    if (answer := server.send(0, PREPARE)) == 0:
        answer = server.send(0, SNAPSHOT)
    assert answer == REFUSED
    raise SQLError(["Msg 3202"], 3202)


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.iterdir())


def test_a_set_is_prepared_before_any_server_hears_of_success(tmp_path: Path, served: Callable[..., object]) -> None:
    states = []

    def look(server: Server) -> None:
        server.write(0, b"a" * 512)
        states.append(state(tmp_path / "set.partial"))
        assert server.send(0, PREPARE) == 0
        states.append(state(tmp_path / "set.partial"))
        assert not (tmp_path / "ran").exists()
        assert server.send(0, SNAPSHOT) == 0
        assert (tmp_path / "ran").exists()
        states.append(state(tmp_path / "set.partial"))

    served(look, plain)
    assert states == ["writing", "writing", "prepared"]
    assert (tmp_path / "set" / "stripe-02-of-02.bak").read_bytes() == b"a" * 512 + b"b" * 512
    StoredSet(str(tmp_path / "set")).verify()


def test_nobody_is_frozen_before_all_are_ready(served: Callable[..., object]) -> None:
    ready, released = threading.Event(), []

    def slow(server: Server) -> None:
        assert not ready.wait(0.3) and not released  # the other one has asked long ago, and waits
        ready.set()
        plain(server)

    def quick(server: Server) -> None:
        assert server.send(0, PREPARE) == 0
        released.append(ready.is_set())
        assert server.send(0, SNAPSHOT) == 0

    served(slow, quick)
    assert released == [True]


def test_a_server_that_does_not_ask_is_waited_for_at_its_snapshot(served: Callable[..., object]) -> None:
    """VDF_SnapshotPrepare is ignored before SQL Server 2000 SP2 (C:7ut1)."""

    def old(server: Server) -> None:
        server.write(0, b"a" * 512)
        assert server.send(0, SNAPSHOT) == 0

    served(old, plain, old)


@pytest.mark.parametrize("when", ["before", "after"])
def test_flush_complete_and_clear_error_may_come_anywhere(
    tmp_path: Path, served: Callable[..., object], when: str
) -> None:
    def chatty(server: Server) -> None:
        server.write(0, b"a" * 512)
        assert server.send(0, PREPARE) == 0
        server.write(0, b"b" * 512)
        for code in (FLUSH, CLEAR_ERROR, COMPLETE) if when == "before" else ():
            assert server.send(0, code) == 0
            assert state(tmp_path / "set.partial") == "writing"
        assert server.send(0, SNAPSHOT) == 0
        for code in (FLUSH, COMPLETE) if when == "after" else ():
            assert server.send(0, code) == 0
        assert state(tmp_path / "set.partial") == "prepared"

    served(chatty, plain)
    StoredSet(str(tmp_path / "set")).verify()


def test_what_is_written_after_the_snapshot_counts_too(tmp_path: Path, served: Callable[..., object]) -> None:
    def late(server: Server) -> None:
        plain(server)
        server.write(0, b"c" * 512)
        assert state(tmp_path / "set.partial") == "writing"

    served(late)
    assert (tmp_path / "set" / "stripe-01-of-01.bak").read_bytes()[-512:] == b"c" * 512
    StoredSet(str(tmp_path / "set")).verify()


def test_an_unknown_command_is_not_supported(served: Callable[..., object]) -> None:
    def odd(server: Server) -> None:
        assert server.send(0, CommandCode.FILE_INFO_BEGIN) == CompletionCode.NOT_SUPPORTED
        assert server.send(0, CLEAR_ERROR) == 0
        plain(server)

    served(odd)


def test_a_statement_that_ends_without_a_snapshot_takes_none(tmp_path: Path, served: Callable[..., object]) -> None:
    def nothing(server: Server) -> None:
        server.write(0, b"a" * 512)

    with pytest.raises(SQLError, match="the statement for a ended without a snapshot"):
        served(nothing, refused)
    assert left(tmp_path) == []


def test_a_server_that_aborts_while_others_are_frozen(tmp_path: Path, served: Callable[..., object]) -> None:
    def aborting(server: Server) -> None:
        assert server.send(0, PREPARE) == 0
        server.abort("mine")
        raise SQLError(["Msg 3229"], 3229)

    with pytest.raises(SQLError) as caught:
        served(refused, aborting)
    assert caught.value.number == 3229 and "database b" in caught.value.__notes__
    assert left(tmp_path) == []


def test_a_server_that_never_freezes_is_named(tmp_path: Path, served: Callable[..., object]) -> None:
    def stuck(server: Server) -> None:
        assert server.send(0, PREPARE) == 0
        while server.send(0, CLEAR_ERROR) == 0:  # until the set is aborted
            pass
        raise SQLError(["Msg 995"], 995)

    with pytest.raises(FreezeTimeoutError, match="not frozen within 0.5 seconds: b"):
        served(refused, stuck, freeze_timeout=0.5)
    assert left(tmp_path) == []


@pytest.mark.parametrize("lost", [False, True], ids=["failed", "lost"])
def test_what_only_some_report_is_kept_as_prepared(
    tmp_path: Path, served: Callable[..., object], lost: bool
) -> None:
    """The set is neither a backup of all nor nothing: one server keeps its backup in its history."""

    def failing(server: Server) -> None:
        plain(server)
        raise (StatementLostError if lost else SQLError)(["Msg 3271"], None if lost else 3271)

    with pytest.raises(SQLError) as caught:
        served(plain, failing)
    assert any("statements that succeeded: a; " in note for note in caught.value.__notes__)
    assert left(tmp_path) == ["ran", "set.partial"]
    [found] = recover(str(tmp_path))
    assert found.state == "prepared"


def test_what_all_report_as_failed_is_nothing(tmp_path: Path, served: Callable[..., object]) -> None:
    def failing(server: Server) -> None:
        plain(server)
        raise SQLError(["Msg 3271"], 3271)

    with pytest.raises(SQLError):
        served(failing, failing)
    assert left(tmp_path) == ["ran"]


def test_a_restore_serves_reads_until_the_end(
    tmp_path: Path, served: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads may come in any place before the device closes, also behind MountSnapshot."""
    served(plain, plain)
    seen = {}

    def script(server: Server) -> None:
        buffer = server._set.allocate_buffer(512)
        got = []
        for code in (CommandCode.READ, CommandCode.MOUNT_SNAPSHOT, CommandCode.READ, CommandCode.READ):
            if code == CommandCode.READ:
                done = server.devices[0].send_command(code, buffer, size=512).result(30)
                got.append((done.code, bytes(memoryview(buffer)[: done.bytes_transferred])))
            else:
                assert server.send(0, code) == 0
        seen[threading.get_ident()] = got
        server._set.free_buffer(buffer)

    def submit(text: str, name: str, *rest: object) -> Statement:
        return Server(script, [text.split("VIRTUAL_DEVICE = N'")[1].split("'")[0]], False)

    monkeypatch.setattr(places, "submit", submit)
    restore_snapshot(tmp_path / "set", ["synthetic:1M"] * 2, mount_command="true")
    assert list(seen.values()) == [
        [(0, b"a" * 512), (0, b"b" * 512), (CompletionCode.HANDLE_EOF, b"")]
    ] * 2
