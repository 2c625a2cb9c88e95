"""Sets for two questions that a Stage does not answer: a full ring with nobody else at work, and many devices."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_void_p
from pathlib import Path
from time import perf_counter_ns

from vdi_ext import Command, DeviceSetConfig, VDClosedError, VirtualDevice, VirtualDeviceSet

from . import library as native
from .peer import Peer
from .stage import CtypesDevice, python_stream


class Local:
    """Both halves in this process. The server's agent stands still while the ring is emptied, so that only the client's
    side is in the time."""

    def __init__(self, library: Path, block: int = 4096, commands: int = 1024) -> None:
        self.block, self.commands = block, commands
        self.lib = native.load(library)
        self.set = VirtualDeviceSet.create(config=DeviceSetConfig(device_count=3))
        name, path = self.set.name.encode(), os.fsencode(native.embedded())
        self._server = native.good(self.lib.server_open(path, name, block, commands + 1))
        self.set.get_configuration(30)
        self.python = self.set.open_device()
        self._joined = native.good(self.lib.client_join(path, name))
        self.c, c_2 = (native.good(self.lib.client_open(self._joined, name + b"-%d" % i)) for i in (1, 2))
        self.ctypes = CtypesDevice(c_2, self.lib.object_read_all)

    def close(self) -> None:
        """End everything in order."""
        with ThreadPoolExecutor(1) as pool:
            finished = pool.submit(self.lib.server_close, self._server)
            for device in (self.c, self.ctypes.pointer):
                while self.lib.client_stream(device, 1, 0) >= 0:
                    pass
                self.lib.client_release(device)
            try:
                self.python.get_command(30)
            except VDClosedError:
                pass
            native.good(finished.result())
        native.good(self.lib.client_leave(self._joined))
        self.set.close()

    def fill(self, device: int) -> None:
        """Put all commands into the ring of a device, and stop the agent; `finish` after they are completed."""
        n = self.commands + 1
        native.good(self.lib.server_start(self._server, native.RING, device, 1, n, n, self.block, 0, None))
        if device == 0:
            self.python.get_command().complete()
        else:
            native.good(self.lib.client_drain(self.c if device == 1 else self.ctypes.pointer, 1))
        time.sleep(0.0005)  # the agent takes that one and waits in its completion routine; else it would be timed too

    def finish(self) -> None:
        """Let the agent take the completions."""
        if self.lib.server_finish(self._server):
            raise RuntimeError("a command was not completed well")

    # Each: ns per command, with all of them there already.

    def c_drain(self) -> float:
        """In C."""
        return self._drain(1, lambda n: self.lib.client_drain(self.c, n))

    def ctypes_drain(self) -> float:
        """Through ctypes."""
        return self._drain(2, self.ctypes.drain)

    def python_drain(self, use: Callable[[Command], object] | None = None) -> float:
        """With this package."""
        return self._drain(0, lambda n: drain(self.python, n, use))

    def _drain(self, device: int, receive: Callable[[int], int]) -> float:
        self.fill(device)
        ns = native.good(receive(self.commands))
        self.finish()
        return ns / self.commands


def drain(device: VirtualDevice, count: int, use: Callable[[Command], object] | None = None) -> int:
    """Get and complete `count` commands, ns; `use` gets each between."""
    if use is None:
        start = perf_counter_ns()
        for _ in range(count):
            device.get_command().complete()
        return perf_counter_ns() - start
    start = perf_counter_ns()
    for _ in range(count):
        command = device.get_command()
        use(command)
        command.complete()
    return perf_counter_ns() - start


class Fleet:
    """64 devices, one thread each, and one server that serves them all from one thread."""

    DEVICES = 64

    def __init__(self, library: Path, block: int, *, python: bool, provider: str | None = None) -> None:
        provider = provider or native.embedded()
        self.block = block
        self.lib = native.load(library)
        self.peer = Peer(library, block)
        self.set = VirtualDeviceSet.create(config=DeviceSetConfig(device_count=self.DEVICES), provider=provider)
        self.peer.begin("open", provider, self.set.name, block, self.DEVICES)
        self.set.get_configuration(30)
        self.peer.result()
        names = [self.set.name, *(f"{self.set.name}-{i}" for i in range(1, self.DEVICES))]
        self.devices: list[VirtualDevice] = []
        self.pointers: list[int] = []
        if python:
            self.devices = [self.set.open_device(name) for name in names]
            self.pool = ThreadPoolExecutor(self.DEVICES)
        else:
            self._joined = native.good(self.lib.client_join(os.fsencode(provider), self.set.name.encode()))
            self.pointers = [native.good(self.lib.client_open(self._joined, name.encode())) for name in names]

    def close(self) -> None:
        """End everything in order."""
        self.peer.begin("finish")
        for pointer in self.pointers:
            while self.lib.client_stream(pointer, 1, 0) >= 0:
                pass
            self.lib.client_release(pointer)
        for device in self.devices:
            try:
                device.get_command(30)
            except VDClosedError:
                pass
        self.peer.result()
        if self.pointers:
            native.good(self.lib.client_leave(self._joined))
        else:
            self.pool.shutdown()
        self.set.close()
        self.peer.close()

    def stream(self, devices: int, count: int) -> float:
        """ns per block for `count` blocks over that many devices, all 64 buffers in use."""
        each, depth = count // devices, self.DEVICES // devices
        self.peer.begin("run", native.FILL, 0, devices, each, depth, self.block)
        if self.pointers:
            array = (c_void_p * devices)(*self.pointers[:devices])
            ns = native.good(self.lib.client_stream_all(array, devices, each, True))
        else:
            start = perf_counter_ns()
            read = self.lib.object_read_all
            list(self.pool.map(lambda device: python_stream(device, each, read), self.devices[:devices]))
            ns = perf_counter_ns() - start
        self.peer.result()
        return ns / (each * devices)
