"""A device set between this process and its peer, and everything that can be run over it or instead of it.

Every measurement here has the same form: some blocks pass until the flow is steady, `count` are timed on the receiving
side, and some more follow, so that neither start nor end is in the time.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, byref, c_int32, c_uint32, c_uint64, c_void_p
from pathlib import Path
from time import perf_counter_ns

import numpy as np

from vdi_ext import Command, DeviceSetConfig, VDClosedError, VirtualDevice, VirtualDeviceSet

from . import library as native
from .peer import SLOTS, Peer

# Receives a number of blocks and returns ns.
Receiver = Callable[[int], int]


def read_nothing(block: object) -> None:
    """For the cost of the transport alone."""


class VDCCommand(Structure):
    """VDC_Command."""

    _fields_ = [("code", c_uint32), ("size", c_uint32), ("position", c_uint64), ("buffer", c_void_p)]


class CtypesDevice:
    """A client as one writes it with ctypes: the same vtable, each buffer copied into bytes."""

    def __init__(self, pointer: int, use: Callable[[object], object]) -> None:
        self.pointer, self.use = pointer, use
        vtable = c_void_p.from_address(pointer).value
        slots = (c_void_p * 5).from_address(vtable)
        command = POINTER(VDCCommand)
        self.get = CFUNCTYPE(c_int32, c_void_p, c_uint32, POINTER(command))(slots[3])
        self.complete = CFUNCTYPE(c_int32, c_void_p, command, c_uint32, c_uint32, c_uint64)(slots[4])
        self.command = command

    def drain(self, count: int) -> int:
        """Get and complete only."""
        get, complete, pointer, p = self.get, self.complete, self.pointer, self.command()
        start = perf_counter_ns()
        for _ in range(count):
            native.good(get(pointer, 0, byref(p)))
            native.good(complete(pointer, p, 0, p.contents.size, 0))
        return perf_counter_ns() - start

    def stream(self, count: int) -> int:
        """Copy each buffer, and read the copy."""
        get, complete, pointer, p = self.get, self.complete, self.pointer, self.command()
        start = perf_counter_ns()
        for _ in range(count):
            native.good(get(pointer, 0xFFFFFFFF, byref(p)))
            data = ctypes.string_at(p.contents.buffer, p.contents.size)
            native.good(complete(pointer, p, 0, p.contents.size, 0))
            self.use(data)
        return perf_counter_ns() - start


def python_stream(device: VirtualDevice, count: int, use: Callable[[Command], object]) -> int:
    """A client in Python as the README shows it."""
    start = perf_counter_ns()
    for command in itertools.islice(device, count):
        with command:
            use(command)
    return perf_counter_ns() - start


class Stage:
    """A set whose client is this process and whose server is its peer.

    Device 0 is served by this package, device 1 in C and device 2 through ctypes, both in this process as well: all
    three see the same buffers at the same addresses.
    """

    def __init__(self, library: Path, block: int, buffers: int, provider: str | None = None) -> None:
        self.block = block
        provider = provider or native.embedded()
        self.lib = native.load(library)
        self.read_all = self.lib.object_read_all  # the same loop as the client in C has
        self.peer = Peer(library, block)
        try:
            self.set = VirtualDeviceSet.create(config=DeviceSetConfig(device_count=3), provider=provider)
            self.peer.begin("open", provider, self.set.name, block, buffers)
            self.set.get_configuration(30)
            self.peer.result()
            self.python = self.set.open_device()
            self._joined = native.good(self.lib.client_join(os.fsencode(provider), self.set.name.encode()))
            self.c, c_2 = (
                native.good(self.lib.client_open(self._joined, f"{self.set.name}-{i}".encode())) for i in (1, 2)
            )
            self.ctypes = CtypesDevice(c_2, self.read_all)
        except BaseException:
            self.peer.close()
            raise

    def close(self) -> None:
        """End everything in order; each device hears of its end."""
        self.peer.begin("finish")
        for device in (self.c, self.ctypes.pointer):
            while self.lib.client_stream(device, 1, 0) >= 0:
                pass
            self.lib.client_release(device)
        try:
            self.python.get_command(30)
        except VDClosedError:
            pass
        self.peer.result()
        native.good(self.lib.client_leave(self._joined))
        self.set.close()
        self.peer.close()

    # ---- streams: GB/s is block / ns

    def stream(self, device: int, receive: Receiver, count: int, depth: int, *, mode: int = native.FILL) -> float:
        """ns per block through one of the devices."""
        before = after = 2 * depth
        self.peer.begin("run", mode, device, 1, before + count + after, depth, self.block)
        native.good(receive(before))
        ns = native.good(receive(count))
        native.good(receive(after))
        self.peer.result()
        return ns / count

    def python_stream(self, count: int, depth: int, use: Callable[[Command], object] | None = None, **options) -> float:
        """This package as the client."""
        return self.stream(0, lambda n: python_stream(self.python, n, use or self.read_all), count, depth, **options)

    def c_stream(self, count: int, depth: int, read: bool = True, **options) -> float:
        """A client in C."""
        return self.stream(1, lambda n: self.lib.client_stream(self.c, n, read), count, depth, **options)

    def ctypes_stream(self, count: int, depth: int) -> float:
        """A client in ctypes that copies."""
        return self.stream(2, self.ctypes.stream, count, depth)

    def copy(self, count: int, depth: int) -> float:
        """One thread's memcpy of the same bytes into the same buffers, nobody reading."""
        self.peer.call("copy", 2 * depth, depth, self.block)
        return self.peer.call("copy", count, depth, self.block) / count

    def rewritten(self, use: Callable[[Command], object], laps: int, depth: int) -> float:
        """ns per block for `use` alone on shared buffers, which the other process has rewritten before each lap."""
        self.peer.call("start", native.RESEND, 0, 1, depth, depth, self.block)
        commands = [self.python.get_command() for _ in range(depth)]
        ns = 0
        for lap in range(laps + 1):
            self.peer.call("copy", depth, depth, self.block)
            start = perf_counter_ns()
            for command in commands:
                use(command)
            ns += perf_counter_ns() - start if lap else 0
        for command in commands:
            command.complete()
        self.peer.call("end")
        return ns / (laps * depth)

    def pipe(self, count: int, wide: bool) -> float:
        """A pipe, read into one buffer that is read in turn."""
        fd = self.peer.wide_pipe if wide else self.peer.pipe
        data = bytearray(self.block)
        view = memoryview(data)

        def receive(n: int) -> int:
            start = perf_counter_ns()
            for _ in range(n):
                done = 0
                while done < self.block:
                    done += os.readv(fd, [view[done:]])
                self.read_all(data)
            return perf_counter_ns() - start

        self.peer.begin("write", wide, count + 4)
        receive(2)
        ns = receive(count)
        receive(2)
        self.peer.result()
        return ns / count

    def queue(self, count: int) -> float:
        """multiprocessing.shared_memory, the numbers of its blocks through queues."""
        full, free, block = self.peer.full, self.peer.free, self.block
        blocks = [self.peer.memory.buf[slot * block : (slot + 1) * block] for slot in range(SLOTS)]

        def receive(n: int) -> int:
            start = perf_counter_ns()
            for _ in range(n):
                slot = full.get()
                self.read_all(blocks[slot])
                free.put(slot)
            return perf_counter_ns() - start

        self.peer.begin("queue", count + 2 * SLOTS)
        for slot in range(SLOTS):
            free.put(slot)
        receive(SLOTS)
        ns = receive(count)
        receive(SLOTS)
        self.peer.result()
        for _ in range(SLOTS):  # back to the start
            free.get()
        for view in blocks:
            view.release()
        return ns / count

    # ---- round trips: ns

    def c_round_trip(self, count: int) -> float:
        """One command at a time, client in C, both awake."""
        return self.c_stream(count, 1, False, mode=native.RESEND)

    def python_round_trip(self, count: int) -> float:
        """The same with this package as the client."""
        device = self.python

        def receive(n: int) -> int:
            start = perf_counter_ns()
            for _ in range(n):
                device.get_command().complete()
            return perf_counter_ns() - start

        return self.stream(0, receive, count, 1, mode=native.RESEND)

    def raw_round_trip(self, count: int, asleep: bool) -> float:
        """Two words of shared memory."""
        with self._court() as court:
            self.peer.begin("pong", 0, count + 64, asleep)
            self.lib.raw_ping(court, 0, 64, asleep)
            ns = self.lib.raw_ping(court, 64, count, asleep)
            self.peer.result()
        return ns / count

    def sleepy_round_trip(self, count: int, pause: int) -> float:
        """There and back, the receiver being asleep each time; median ns."""
        self.peer.begin("run", native.SLEEPY, 1, 1, count, 1, self.block, pause)
        native.good(self.lib.client_sleepy(self.c, count, pause))
        return float(np.median(self.peer.result()))

    def raw_sleepy_round_trip(self, count: int, pause: int) -> float:
        """The same over two words of shared memory and futexes."""
        times = (c_uint64 * count)()
        with self._court() as court:
            self.peer.begin("sleepy_pong", 0, count, pause)
            self.lib.raw_sleepy_ping(court, 0, count, pause, times)
            self.peer.result()
        return float(np.median(times))

    def _court(self) -> _Court:
        return _Court(self.peer.court.buf)


class _Court:
    """Address of the memory for ping-pongs, zeroed."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer

    def __enter__(self) -> int:
        self.buffer[:] = bytes(len(self.buffer))
        self.bytes = ctypes.c_char.from_buffer(self.buffer)
        return ctypes.addressof(self.bytes)

    def __exit__(self, *exception: object) -> None:
        del self.bytes
