"""The other process: does one thing at a time in C, as it is told through a connection."""

from __future__ import annotations

import ctypes
import fcntl
import multiprocessing
import os
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from . import library as native

F_SETPIPE_SZ = 1031
COURT = 4096  # bytes for ping-pongs
SLOTS = 4  # of the shared memory that goes with queues


class Peer:
    """A spawned process with everything that two processes can be connected by.

    Attributes
    ----------
    pipe, wide_pipe : int
        Reading ends of a pipe of the default size and of one of 1 MiB.
    memory : SharedMemory
        `SLOTS` blocks of `block` bytes.
    full, free : multiprocessing.Queue
        Numbers of those blocks.
    court : SharedMemory
        For ping-pongs.
    """

    def __init__(self, library: Path, block: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        ends = [context.Pipe(duplex=False) for _ in range(2)]
        fcntl.fcntl(ends[1][1].fileno(), F_SETPIPE_SZ, 1 << 20)
        self._ends = [reader for reader, _ in ends]
        self.pipe, self.wide_pipe = (reader.fileno() for reader in self._ends)
        self.memory = SharedMemory(create=True, size=SLOTS * block)
        self.court = SharedMemory(create=True, size=COURT)
        self.full, self.free = context.Queue(), context.Queue()
        self.block = block
        self._process = context.Process(
            target=_main,
            args=(
                other,
                str(library),
                block,
                [writer for _, writer in ends],
                self.memory.name,
                self.court.name,
                self.full,
                self.free,
            ),
            name="benchmark-peer",
        )
        self._process.start()
        other.close()
        for _, writer in ends:
            writer.close()

    @property
    def pid(self) -> int:
        """Of the other process."""
        return self._process.pid

    def begin(self, operation: str, *arguments: object) -> None:
        """Let it start; `result` waits for the end."""
        self._connection.send((operation, arguments))

    def result(self, timeout: float = 60.0) -> object:
        """Return what the operation returned, or raise what it raised."""
        if not self._connection.poll(timeout):
            raise TimeoutError("the other process does not answer")
        value = self._connection.recv()
        if isinstance(value, BaseException):
            raise value
        return value

    def call(self, operation: str, *arguments: object) -> object:
        """`begin` and `result`."""
        self.begin(operation, *arguments)
        return self.result()

    def close(self) -> None:
        """End the process and free everything."""
        self._connection.close()  # it ends by that
        self._process.join(30)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        for end in self._ends:
            end.close()
        for queue in (self.full, self.free):
            queue.close()
            queue.join_thread()
        for memory in (self.memory, self.court):
            memory.close()
            memory.unlink()


class _Operations:
    """What the other process can do. One instance, in that process."""

    def __init__(self, library, block, writers, memory, court, full, free) -> None:
        self.lib = native.load(library)
        self.block = block
        self.writers = writers
        self.memory = SharedMemory(memory)
        self.shared_court = SharedMemory(court)
        self.court_bytes = ctypes.c_char.from_buffer(self.shared_court.buf)
        self.court = ctypes.addressof(self.court_bytes)
        self.full, self.free = full, free
        self.source = bytes(range(256)) * (block // 256)
        self.server = None

    def open(self, provider: str, name: str, block: int, buffers: int) -> None:
        """Open and configure the set that the caller created."""
        self.server = self.lib.server_open(os.fsencode(provider), name.encode(), block, buffers)
        if not self.server:
            raise RuntimeError("the server could not open the set")

    def run(self, mode, first, devices, count, depth, size, pause=0) -> list[int]:
        """Send `count` commands to each of the devices; returns the times of mode SLEEPY."""
        self.start(mode, first, devices, count, depth, size, pause)
        self.end()
        return list(self.times) if mode == native.SLEEPY else []

    def start(self, mode, first, devices, count, depth, size, pause=0) -> None:
        """`run` without waiting for the end."""
        self.times = (ctypes.c_uint64 * (devices * count))()
        start = self.lib.server_start
        native.good(start(self.server, mode, first, devices, count, depth, size, pause, self.times))

    def end(self) -> None:
        """Wait until everything is completed."""
        failure = self.lib.server_finish(self.server)
        if failure:
            raise RuntimeError(f"a command was completed with {failure}")

    def copy(self, count: int, depth: int, size: int) -> int:
        """memcpy into the same buffers without any command; ns."""
        return native.good(self.lib.server_copy(self.server, count, depth, size))

    def finish(self) -> None:
        """End devices and set."""
        native.good(self.lib.server_close(self.server))
        self.server = None

    def write(self, wide: bool, count: int) -> None:
        """Write blocks into one of the pipes."""
        failure = self.lib.raw_write(self.writers[wide].fileno(), self.source, self.block, count)
        if failure:
            raise OSError(failure, os.strerror(failure))

    def queue(self, count: int) -> None:
        """Fill blocks of the shared memory and pass their numbers through a queue."""
        view = memoryview(self.memory.buf)
        for _ in range(count):
            slot = self.free.get()
            view[slot * self.block : (slot + 1) * self.block] = self.source
            self.full.put(slot)
        view.release()

    def pong(self, start: int, count: int, asleep: bool) -> None:
        """The other side of raw_ping."""
        self.lib.raw_pong(self.court, start, count, asleep)

    def sleepy_pong(self, start: int, count: int, pause: int) -> None:
        """The other side of raw_sleepy_ping."""
        self.lib.raw_sleepy_pong(self.court, start, count, pause)

    def close(self) -> None:
        del self.court_bytes
        self.shared_court.close()
        self.memory.close()


def _main(connection: Connection, *arguments: object) -> None:
    operations = _Operations(*arguments)
    try:
        while True:
            try:
                name, values = connection.recv()
            except EOFError:
                return
            try:
                connection.send(getattr(operations, name)(*values))
            except Exception as error:  # raised again where it was asked for
                connection.send(error)
    finally:
        operations.close()
