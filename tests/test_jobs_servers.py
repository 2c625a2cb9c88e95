"""Servers that do what the stand-in does not: several Flushes, none, failure and death at the worst moment."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from vdi_ext import CommandCode, CompletionCode, Feature, VDAbortError
from vdi_ext.jobs import ProgressEvent, SQLError, StatementLostError, StorageError, backup, places, recover
from vdi_ext.jobs.statements import Statement
from vdi_ext.server import ServerDevice, ServerDeviceSet
from vdi_ext.storage import StoredSet

SIZE = 65536
Script = Callable[["Server"], None]


class Server(Statement):
    """Runs a script against the server's half; what the script raises is how the statement failed."""

    def __init__(self, script: Script, names: list[str], grant: bool) -> None:
        super().__init__()
        self._script = script
        self._names = names
        self._grant = grant
        self.devices: list[ServerDevice] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._thread.join()

    def write(self, number: int, data: bytes) -> None:
        buffer = self._set.allocate_buffer(SIZE)
        with memoryview(buffer) as view:
            view[: len(data)] = data
        done = self.devices[number].send_command(CommandCode.WRITE, buffer, size=len(data)).result(30)
        assert done == (CompletionCode.SUCCESS, len(data), 0)
        self._set.free_buffer(buffer)

    def send(self, number: int, code: CommandCode) -> int:
        return self.devices[number].send_command(code).result(30).code

    def abort(self, reason: str) -> None:
        self._set.signal_abort(reason)

    def _run(self) -> None:
        error: SQLError | None = None
        try:
            with ServerDeviceSet.open(self._names[0], provider="embedded") as self._set:
                features = self._set.get_configuration().features | Feature.WRITE_MEDIA
                features |= Feature.COMPLETE_ENABLED if self._grant else 0
                self._set.begin_configuration(features, 512, 0, SIZE)
                self._set.request_buffers(SIZE, 0, 4)
                self._set.end_configuration()
                self.devices = [self._set.open_device(name) for name in self._names]
                self._script(self)
                for device in self.devices:
                    device.close_device()
        except SQLError as failure:
            error = failure
        except VDAbortError as failure:
            error = SQLError([f"aborted: {failure}"])
        self._end(error)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """Back up, over two devices, what a script sends."""

    def run(script: Script, *, grant: bool = False, **options: object) -> object:
        def submit(text: str, *rest: object) -> Statement:
            return Server(script, [part.split("'")[1] for part in text.split("VIRTUAL_DEVICE = N")[1:]], grant)

        monkeypatch.setattr(places, "submit", submit)
        return backup("synthetic:1M", tmp_path / "set", devices=2, **options)

    return run


def state(directory: Path) -> str:
    return json.loads((directory / "manifest.json").read_text())["state"]


def test_several_flushes_without_complete(tmp_path: Path, served: Callable[..., object]) -> None:
    """The last Flush counts, and only while nothing follows it (KB3188454)."""
    partial = tmp_path / "set.partial"
    states = []

    def script(server: Server) -> None:
        for number in (0, 1):
            server.write(number, b"a" * 1024)
            assert server.send(number, CommandCode.FLUSH) == 0
            states.append(state(partial))
        server.write(1, b"b" * 512)
        states.append(state(partial))
        assert server.send(1, CommandCode.FLUSH) == 0
        states.append(state(partial))
        server.write(0, b"c" * 512)
        states.append(state(partial))
        assert server.send(0, CommandCode.FLUSH) == 0
        states.append(state(partial))

    served(script)
    assert states == ["writing", "prepared", "writing", "prepared", "writing", "prepared"]
    assert (tmp_path / "set" / "stripe-01-of-02.bak").read_bytes() == b"a" * 1024 + b"c" * 512
    assert (tmp_path / "set" / "stripe-02-of-02.bak").read_bytes() == b"a" * 1024 + b"b" * 512
    StoredSet(str(tmp_path / "set")).verify()


def test_a_flush_is_not_the_end_where_complete_was_granted(tmp_path: Path, served: Callable[..., object]) -> None:
    def script(server: Server) -> None:
        for number in (0, 1):
            server.write(number, b"a" * 512)
            assert server.send(number, CommandCode.FLUSH) == 0
        assert state(tmp_path / "set.partial") == "writing"
        assert server.send(0, CommandCode.COMPLETE) == 0
        assert state(tmp_path / "set.partial") == "writing"
        assert server.send(1, CommandCode.COMPLETE) == 0
        assert state(tmp_path / "set.partial") == "prepared"

    served(script, grant=True)
    StoredSet(str(tmp_path / "set")).verify()


def test_no_device_waits_for_another(tmp_path: Path, served: Callable[..., object]) -> None:
    """All commands of one device are answered while the other has not even begun."""

    def script(server: Server) -> None:
        for number in (1, 0):
            for _ in range(20):
                server.write(number, os.urandom(SIZE))
            assert server.send(number, CommandCode.FLUSH) == 0
            assert server.send(number, CommandCode.COMPLETE) == 0

    served(script, grant=True)
    assert StoredSet(str(tmp_path / "set")).manifest.size == 40 * SIZE


def test_a_server_that_never_flushes(tmp_path: Path, served: Callable[..., object]) -> None:
    """It reports success: what it has sent is kept, durable, and counts."""
    served(lambda server: server.write(0, b"x" * 512))
    StoredSet(str(tmp_path / "set")).verify()
    assert (tmp_path / "set" / "stripe-01-of-02.bak").read_bytes() == b"x" * 512


def test_unknown_commands_are_refused_and_change_nothing(tmp_path: Path, served: Callable[..., object]) -> None:
    def script(server: Server) -> None:
        server.write(0, b"x" * 512)
        for code in (CommandCode.REWIND, CommandCode.SNAPSHOT, CommandCode.GET_ERROR):
            assert server.send(0, code) == CompletionCode.NOT_SUPPORTED
            assert server.send(0, CommandCode.CLEAR_ERROR) == 0
        for number in (0, 1):
            assert server.send(number, CommandCode.FLUSH) == 0

    served(script)
    assert (tmp_path / "set" / "stripe-01-of-02.bak").read_bytes() == b"x" * 512


def whole(server: Server) -> None:
    for number in (0, 1):
        server.write(number, b"x" * 512)
        assert server.send(number, CommandCode.FLUSH) == 0


def test_failure_reported_after_the_last_flush(tmp_path: Path, served: Callable[..., object]) -> None:
    def script(server: Server) -> None:
        whole(server)
        raise SQLError(["Msg 3013: too bad"], 3013)

    with pytest.raises(SQLError, match="too bad"):
        served(script)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["abort", "close"])
def test_an_outcome_that_nobody_knows(tmp_path: Path, served: Callable[..., object], how: str) -> None:
    """The server is lost when every stripe was durable: the set is kept, listed, restorable, and nobody deletes it."""

    def script(server: Server) -> None:
        whole(server)
        if how == "abort":
            server.abort("pulled the plug")
        raise StatementLostError(["gone"])

    with pytest.raises(StatementLostError) as caught:
        served(script)
    assert "the outcome is not known" in caught.value.__notes__[0]
    assert [(entry.state, entry.problems) for entry in recover(str(tmp_path))] == [("prepared", ())]
    assert [entry.state for entry in recover(str(tmp_path), action="remove")] == ["prepared"]
    assert [entry.state for entry in recover(str(tmp_path), action="publish")] == ["published"]
    StoredSet(str(tmp_path / "set")).verify()


def test_a_server_that_is_lost_too_early(tmp_path: Path, served: Callable[..., object]) -> None:
    def script(server: Server) -> None:
        server.write(0, b"x" * 512)
        server.send(0, CommandCode.FLUSH)
        raise StatementLostError(["gone"])

    with pytest.raises(StatementLostError):
        served(script)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("phase", ["closing", "publishing"])
@pytest.mark.parametrize("flush", [True, False])
def test_a_cancel_after_success_publishes(
    tmp_path: Path, served: Callable[..., object], flush: bool, phase: str
) -> None:
    """The server may have truncated its log for this backup: nothing of it is thrown away."""

    def stop(event: ProgressEvent) -> None:
        if event.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        served(whole if flush else lambda server: server.write(1, b"x" * 512), progress=stop)
    assert "the set is published" in caught.value.__notes__[0]
    assert StoredSet(str(tmp_path / "set")).state == "confirmed"
    StoredSet(str(tmp_path / "set")).verify()


def test_a_rename_that_fails_keeps_the_set(tmp_path: Path, served: Callable[..., object]) -> None:
    def script(server: Server) -> None:
        whole(server)
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "foreign").touch()

    with pytest.raises(StorageError, match="stays in"):
        served(script)
    assert [entry.state for entry in recover(str(tmp_path), action="verify")] == ["verified"]
