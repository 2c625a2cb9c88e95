"""Both halves of one device set in this process, as tests of the server half want them."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from vdi_ext import (
    DeviceSetConfig,
    Feature,
    VDNotOpenError,
    VDOpenError,
    VDProtocolError,
    VirtualDevice,
    VirtualDeviceSet,
)
from vdi_ext.server import ServerBuffer, ServerDevice, ServerDeviceSet

BLOCK = 512
TRANSFER = 65536
TIMEOUT = 30.0  # seconds until a test that waits in vain fails


def until(condition: Callable[[], bool]) -> None:
    """Wait until something that another thread does has happened."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.0005)


class Thread(threading.Thread):
    """A thread whose exception or result is wanted."""

    def __init__(self, target: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.body = target
        self.result: object = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.body()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    def outcome(self) -> object:
        self.join(TIMEOUT)
        assert not self.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error
        return self.result


def start(target: Callable[[], object]) -> Thread:
    thread = Thread(target)
    thread.start()
    return thread


class Pair:
    """A client's set and the server's, joined; `configure` and `open_devices` take both on from there."""

    def __init__(self, name: str | None = None, *, instance: str | None = None, **config: object) -> None:
        self.client = VirtualDeviceSet.create(
            name, DeviceSetConfig(**config), instance=instance, provider="embedded"  # type: ignore[arg-type]
        )
        try:
            self.server = ServerDeviceSet.open(self.client.name, instance=instance)
        except BaseException:
            self.client.close()
            raise
        self.name = self.client.name
        self.server_devices: list[ServerDevice] = []
        self.client_devices: list[VirtualDevice] = []

    def configure(
        self,
        direction: Feature = Feature.WRITE_MEDIA,
        *,
        block_size: int = BLOCK,
        alignment: int = 0,
        transfer: int = TRANSFER,
        size: int = TRANSFER,
        count: int = 4,
    ) -> Pair:
        asked = self.server.get_configuration().features
        self.server.begin_configuration(asked | direction, block_size, alignment, transfer)
        if count:
            self.server.request_buffers(size, 0, count)
        self.server.end_configuration()
        self.client.get_configuration(TIMEOUT)
        return self

    def open_devices(self) -> Pair:
        count = self.client.config.device_count
        names = [self.name, *(f"{self.name} device {n}" for n in range(1, count))]
        for name in names:
            self.server_devices.append(self.server.open_device(name))
            self.client_devices.append(self.client.open_device(name))
        return self

    @property
    def device(self) -> ServerDevice:
        return self.server_devices[0]

    @property
    def reader(self) -> VirtualDevice:
        return self.client_devices[0]

    def buffer(self, size: int = TRANSFER, alignment: int = 0) -> ServerBuffer:
        return self.server.allocate_buffer(size, alignment)

    def abort_and_close(self) -> None:
        for abort in (self.client.signal_abort, self.server.signal_abort):
            with suppress(VDNotOpenError, VDProtocolError):  # closed already
                abort()
        self.server.close()
        with suppress(VDOpenError):  # devices open: expected after an abort
            self.client.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.abort_and_close()


@contextmanager
def active(direction: Feature = Feature.WRITE_MEDIA, *, count: int = 4, **config: object) -> Iterator[Pair]:
    """A set with all devices open on both sides; aborted and closed at the end, whatever state it is in."""
    with Pair(str(uuid.uuid4()), **config) as pair:  # type: ignore[arg-type]
        yield pair.configure(direction, count=count).open_devices()
