"""Server half on a library that has only what Microsoft publishes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from server_pair import BLOCK, TIMEOUT, TRANSFER, start, until

from vdi_ext import (
    CommandCode,
    CompletionCode,
    Feature,
    VDAbortError,
    VDIOError,
    VDNotSupportedError,
    VDProtocolError,
    VirtualDevice,
    VirtualDeviceSet,
)
from vdi_ext.server import Completion, ServerDevice, ServerDeviceSet

LIBRARY = Path(__file__).resolve().parent.parent / "vdi_ext" / "provider" / "libsqlvdi.so"
PRIVATE = bytes.fromhex("521f3a9c 0b6e 7c4d 8a35 2b41d90e7f61".replace(" ", ""))  # IID_IVdiEmbeddedSet in memory


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the embedded provider that answers another identifier than its private one."""
    image = LIBRARY.read_bytes()
    assert PRIVATE in image
    for half in (PRIVATE[:8], PRIVATE[8:]):  # compilers compare eight bytes at a time
        image = image.replace(half, half[::-1])
    path = tmp_path_factory.mktemp("foreign") / "libforeign.so"
    path.write_bytes(image)
    return path


class Foreign:
    """A client of the embedded provider, and a server on the other library."""

    def __init__(self, library: Path) -> None:
        self.client = VirtualDeviceSet.create(provider="embedded")
        self.server = ServerDeviceSet.open(self.client.name, provider=library)
        self.server.begin_configuration(Feature.WRITE_MEDIA, BLOCK, 0, TRANSFER)
        self.server.request_buffers(TRANSFER, 0, 4)
        self.server.end_configuration()
        self.client.get_configuration(TIMEOUT)
        self.device: ServerDevice = self.server.open_device(self.client.name)
        self.reader: VirtualDevice = self.client.open_device()


@contextmanager
def joined(library: Path) -> Iterator[Foreign]:
    pair = Foreign(library)
    try:
        yield pair
    finally:
        for close in (pair.client.signal_abort, pair.server.close, pair.client.close):
            try:
                close()
            except (VDProtocolError, ValueError):  # closed in the test
                pass


def test_a_life(foreign: Path) -> None:
    with joined(foreign) as pair:
        buffer = pair.server.allocate_buffer(TRANSFER)
        memoryview(buffer)[:] = b"z" * TRANSFER
        seen: list[Completion] = []
        future = pair.device.send_command(CommandCode.WRITE, buffer, callback=seen.append)
        with pair.reader.get_command(TIMEOUT) as command:
            assert bytes(command) == b"z" * TRANSFER
        assert future.result(TIMEOUT) == (CompletionCode.SUCCESS, TRANSFER, 0)
        assert seen == [future.result()]
        with pytest.raises(VDNotSupportedError):  # it does not tell
            pair.server.state  # noqa: B018
        pair.device.close_device()
        assert list(pair.reader) == []
        pair.server.close()
        assert pair.server.state == 0


def test_refusals(foreign: Path) -> None:
    with joined(foreign) as pair:
        seen: list[Completion] = []
        failed = pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete(CompletionCode.DISK_FULL)
        assert failed.result(TIMEOUT).code is CompletionCode.DISK_FULL
        with pytest.raises(VDIOError):
            pair.device.send_command(CommandCode.FLUSH, callback=seen.append)
        pair.server.signal_abort("a reason that it can not pass on")
        with pytest.raises(VDAbortError) as caught:
            pair.device.send_command(CommandCode.FLUSH, callback=seen.append)
        assert caught.value.reason is None and not seen


def test_refusals_on_many_threads(foreign: Path) -> None:
    """Without the GIL kept: the sender's thread must know its own refusals from the agent's completions."""
    with joined(foreign) as pair:
        seen: list[Completion] = []
        pair.device.send_command(CommandCode.FLUSH)
        pair.reader.get_command(TIMEOUT).complete(CompletionCode.DISK_FULL)

        def refused() -> None:
            for _ in range(200):
                with pytest.raises(VDIOError):
                    pair.device.send_command(CommandCode.FLUSH, callback=seen.append)

        threads = [start(refused) for _ in range(4)]
        for _ in range(50):
            cleared = pair.device.send_command(CommandCode.CLEAR_ERROR)
            pair.reader.get_command(TIMEOUT).complete(CompletionCode.NOT_SUPPORTED)
            assert cleared.result(TIMEOUT).code is CompletionCode.NOT_SUPPORTED
        for thread in threads:
            thread.outcome()
        assert not seen


def test_a_callback_that_raises(foreign: Path) -> None:
    with joined(foreign) as pair:
        agent = start(pair.server.execute_completion_agent)
        until(lambda: pair.server.agent_running)
        arrived = threading.Event()

        def callback(completion: Completion) -> None:
            arrived.set()
            raise ZeroDivisionError

        pair.device.send_command(CommandCode.FLUSH, callback=callback)
        pair.reader.get_command(TIMEOUT).complete()
        with pytest.raises(ZeroDivisionError):
            agent.outcome()
        assert arrived.is_set()
        with pytest.raises(VDAbortError):
            pair.reader.get_command(TIMEOUT)
