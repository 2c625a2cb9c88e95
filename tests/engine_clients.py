"""Clients for tests of the stand-in: one thread per device, on the public client half."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator

import numpy as np

from vdi_ext import (
    Command,
    CommandCode,
    CompletionCode,
    DeviceSetConfig,
    Feature,
    VDError,
    VirtualDevice,
    VirtualDeviceSet,
)
from vdi_ext.engine import Synthetic
from vdi_ext.mtf import PAGE_SIZE, fill_pages

Handler = Callable[[int, Command], None]
DONE = (CommandCode.FLUSH, CommandCode.COMPLETE, CommandCode.CLEAR_ERROR)


class Client:
    """A device set with a thread per device; each command goes to `handler(device number, command)`.

    The handler completes the command or leaves that to the ``with`` block around it. `loop(device number, device)` does
    otherwise.
    """

    def __init__(
        self,
        devices: int,
        handler: Handler,
        features: Feature = Feature.REQUEST_COMPLETE,
        loop: Callable[[int, VirtualDevice], None] | None = None,
        **config,
    ) -> None:
        self.name = f"set {uuid.uuid4()}"
        self.names = [self.name, *(f"{self.name} {number}" for number in range(1, devices))]
        self.config: DeviceSetConfig | None = None
        self.codes: list[list[CommandCode | int]] = [[] for _ in self.names]
        self.errors: list[BaseException] = []
        self._handler = handler
        self._loop = loop or self._each
        self._set = VirtualDeviceSet.create(
            self.name, DeviceSetConfig(device_count=devices, features=features, **config)
        )
        self._threads = [threading.Thread(target=self._first, name="client")]
        self._threads[0].start()

    @property
    def clauses(self) -> str:
        return ", ".join(f"VIRTUAL_DEVICE = N'{name}'" for name in self.names)

    def abort(self) -> None:
        self._set.signal_abort("the client of a test gives up")

    def close(self) -> None:
        """Wait for the threads, close the set."""
        while self._threads:
            self._threads.pop(0).join()
        with contextlib.suppress(VDError):  # an abort, which a test looks for elsewhere
            self._set.close()

    def _first(self) -> None:
        try:
            self.config = self._set.get_configuration(30)
        except BaseException as error:
            self.errors.append(error)
            return
        workers = [threading.Thread(target=self._serve, args=(n,), name=f"client {n}") for n in range(len(self.names))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _serve(self, number: int) -> None:
        try:
            self._loop(number, self._set.open_device(self.names[number]))
        except BaseException as error:
            self.errors.append(error)

    def _each(self, number: int, device: VirtualDevice) -> None:
        for command in device:
            self.codes[number].append(command.code)
            with command:
                self._handler(number, command)


@contextlib.contextmanager
def client(devices: int, handler: Handler, features: Feature = Feature.REQUEST_COMPLETE, **more) -> Iterator[Client]:
    """A client that is closed, whatever happens; on an exception the set is aborted first."""
    one = Client(devices, handler, features, **more)
    try:
        yield one
    except BaseException:
        with contextlib.suppress(VDError):
            one.abort()
        raise
    finally:
        # A statement that never came leaves the client waiting for its configuration.
        if one.config is None:
            with contextlib.suppress(VDError):
                one.abort()
        one.close()


class Recorder:
    """Keeps what is written."""

    def __init__(self, devices: int) -> None:
        self.streams = [bytearray() for _ in range(devices)]

    def __call__(self, number: int, command: Command) -> None:
        if command.code == CommandCode.WRITE:
            self.streams[number] += memoryview(command)
        elif command.code in DONE:
            command.complete()


class Player:
    """Plays streams back.

    Parameters
    ----------
    streams : list of bytes-like
    most : int, optional
        Bytes at most per read, completed with SUCCESS: short reads in the middle of the stream.
    """

    def __init__(self, streams: list[bytes | bytearray], most: int | None = None) -> None:
        self._streams = streams
        self._places = [0] * len(streams)
        self._most = most

    def __call__(self, number: int, command: Command) -> None:
        if command.code == CommandCode.READ:
            stream, place = self._streams[number], self._places[number]
            count = min(command.size, len(stream) - place, self._most or command.size)
            with memoryview(command) as view:
                view[:count] = stream[place : place + count]
            self._places[number] = place + count
            full = count == command.size or (self._most is not None and place + count < len(stream))
            command.complete(CompletionCode.SUCCESS if full else CompletionCode.HANDLE_EOF, count)
        elif command.code in DONE:
            command.complete()


class Regenerator:
    """Keeps a synthetic backup of any size as its metadata and page numbers, and makes it again."""

    def __init__(self, source: Synthetic, devices: int) -> None:
        self._snapshot = source.snapshot("", lambda: None)
        self._pieces: list[list[bytes | tuple[int, int]]] = [[] for _ in range(devices)]

    def record(self, number: int, command: Command) -> None:
        if command.code == CommandCode.WRITE:
            with memoryview(command) as view:
                pieces = self._pieces[number]
                # Pages begin with version 1; blocks with four letters, other metadata with a stream's.
                if view[0] == 1:
                    count = len(view) // PAGE_SIZE
                    first = int.from_bytes(view[32:36], "little") if view[1] == 1 else -1
                    pieces.append((first, count))
                else:
                    pieces.append(bytes(view))
        elif command.code in DONE:
            command.complete()

    def player(self) -> Handler:
        streams = [self._stream(pieces) for pieces in self._pieces]
        rest = [memoryview(b"") for _ in streams]

        def play(number: int, command: Command) -> None:
            if command.code != CommandCode.READ:
                command.complete()
                return
            place = 0
            with memoryview(command) as view:
                while place < len(view):
                    if not len(rest[number]):
                        rest[number] = next(streams[number], memoryview(b""))
                        if not len(rest[number]):
                            break
                    part = min(len(view) - place, len(rest[number]))
                    view[place : place + part] = rest[number][:part]
                    rest[number] = rest[number][part:]
                    place += part
            command.complete(CompletionCode.SUCCESS if place == command.size else CompletionCode.HANDLE_EOF, place)

        return play

    def _stream(self, pieces: list[bytes | tuple[int, int]]) -> Iterator[memoryview]:
        for piece in pieces:
            if isinstance(piece, bytes):
                yield memoryview(piece)
                continue
            first, count = piece
            pages = np.zeros((count, PAGE_SIZE), np.uint8)
            if first >= 0:
                self._snapshot.fill(pages, first)
            else:
                fill_pages(pages)
            yield memoryview(pages.reshape(-1))
