"""Reference media: what a client's devices are made of. All that they do comes from section 7 of the specification.

A `Tape` is a drive with cartridges, each a file of blocks and filemarks; a `Disk` is a random-access file, a `Pipe` a
sequential one, and both may have further media to change to. Where section 7 leaves a point open (INF there, or Q15),
the conventions of tapes hold: what goes on after a filemark stopped a read lies behind it, skipping backwards ends
before the mark, and writing ends the data.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from vdi_ext import (
    Command,
    CommandCode,
    CompletionCode,
    DeviceSetConfig,
    Feature,
    VDClosedError,
    VDError,
    VDTimeoutError,
    VirtualDevice,
    VirtualDeviceSet,
    Whence,
)

SUCCESS = CompletionCode.SUCCESS
DATA = (CommandCode.READ, CommandCode.WRITE)
_LENGTH = struct.Struct("<I")
_MARK = -1  # instead of a block's length
MARK_SIZE = 512  # bytes of a cartridge that a filemark takes


class Outcome(NamedTuple):
    """How a command ends: code, bytes transferred, position."""

    code: CompletionCode = SUCCESS
    count: int = 0
    position: int = 0


class Entry(NamedTuple):
    """A command that a medium was given, and how it ended."""

    code: CommandCode | int
    size: int
    position: int
    outcome: Outcome


@dataclass
class Zone:
    """How much a medium holds, and where it begins to warn (7.5).

    Parameters
    ----------
    capacity : int, optional
        Bytes; without limit where not given.
    warning : int
        Bytes before the end in which each write is completed with END_OF_MEDIA.
    short : bool
        The write that would enter the zone stores only what lies before it.
    """

    capacity: int | None = None
    warning: int = 0
    short: bool = False
    warned: bool = False

    def store(self, used: int, size: int, unit: int, full: CompletionCode) -> tuple[int, CompletionCode]:
        """How many of `size` bytes are stored, and the code; `full` is the code at the very end."""
        if self.capacity is None:
            return size, SUCCESS
        border = self.capacity - self.warning
        if self.short and not self.warned and used + size > border:
            self.warned = True
            room = max(0, border - used) // unit * unit
            return min(size, room), CompletionCode.END_OF_MEDIA
        room = max(0, self.capacity - used) // unit * unit
        if size > room:
            return room, full
        return size, CompletionCode.END_OF_MEDIA if used + size > border else SUCCESS


class Cartridge:
    """A tape in a file: each block with its length before and behind it, a filemark as four zero bytes.

    Parameters
    ----------
    path : Path
        Created where missing.
    zone : Zone
    """

    def __init__(self, path: Path, zone: Zone | None = None) -> None:
        self.path = path
        self.zone = zone or Zone()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._objects: list[tuple[int, int]] = []  # place in the file; bytes, or _MARK
        size = os.fstat(self._fd).st_size
        place = 0
        while place < size:
            length = _LENGTH.unpack(os.pread(self._fd, 4, place))[0]
            self._objects.append((place, length or _MARK))
            place += length + 8 if length else 4
        self._end = place
        self.used = sum(length if length != _MARK else MARK_SIZE for _, length in self._objects)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __len__(self) -> int:
        """Blocks and filemarks."""
        return len(self._objects)

    def is_mark(self, number: int) -> bool:
        return self._objects[number][1] == _MARK

    def length(self, number: int) -> int:
        return self._objects[number][1]

    def read(self, number: int, view: memoryview) -> None:
        place, length = self._objects[number]
        assert len(view) == length
        assert os.preadv(self._fd, [view], place + 4) == length

    def cut(self, number: int) -> None:
        """From here on there is nothing: what tapes do where they are written to."""
        if number < len(self._objects):
            self.used -= sum(length if length != _MARK else MARK_SIZE for _, length in self._objects[number:])
            self._end = self._objects[number][0]
            del self._objects[number:]
            os.ftruncate(self._fd, self._end)

    def append(self, block: memoryview | None) -> None:
        """Write a block at the end, or a filemark."""
        if block is None:
            os.pwritev(self._fd, [bytes(4)], self._end)
            self._objects.append((self._end, _MARK))
            self._end += 4
            self.used += MARK_SIZE
            return
        length = _LENGTH.pack(len(block))
        os.pwritev(self._fd, [length, block, length], self._end)
        self._objects.append((self._end, len(block)))
        self._end += len(block) + 8
        self.used += len(block)

    def sync(self) -> None:
        os.fsync(self._fd)

    def files(self) -> list[bytes]:
        """What lies between the filemarks; the last piece is behind the last one."""
        pieces = [bytearray()]
        for number, (_, length) in enumerate(self._objects):
            if length == _MARK:
                pieces.append(bytearray())
            else:
                block = bytearray(length)
                self.read(number, memoryview(block))
                pieces[-1] += block
        return [bytes(piece) for piece in pieces]


@dataclass
class Medium:
    """What all kinds have in common: the log, and what each mode has to answer."""

    features: Feature = Feature.LIKE_PIPE
    block_size: int = 512
    log: list[Entry] = field(default_factory=list)

    def perform(self, code: CommandCode | int, size: int, position: int, view: memoryview | None) -> Outcome:
        """Do what a command asks for; `view`: the buffer of READ and WRITE."""
        outcome = self._do(code, size, position, view)
        self.log.append(Entry(code, size, position, outcome))
        return outcome

    def codes(self) -> list[CommandCode | int]:
        return [entry.code for entry in self.log]

    def _do(self, code: CommandCode | int, size: int, position: int, view: memoryview | None) -> Outcome:
        if code in (CommandCode.CLEAR_ERROR, CommandCode.COMPLETE):
            return Outcome()
        if code == CommandCode.DISCARD and Feature.DISCARD in self.features:
            return Outcome()
        return Outcome(CompletionCode.NOT_SUPPORTED)

    def close(self) -> None:
        """Let go of the files."""


class Tape(Medium):
    """A drive: VDF_LikeTape. Positions are numbers of blocks and filemarks from the beginning of the cartridge.

    Parameters
    ----------
    cartridges : sequence of Cartridge
        The first one is in the drive; VDC_Load puts in the next one.
    discard : bool
        Offer VDC_Discard.
    """

    def __init__(self, cartridges: Iterable[Cartridge], *, discard: bool = False) -> None:
        super().__init__(Feature.LIKE_TAPE | (Feature.DISCARD if discard else Feature.LIKE_PIPE))
        self.cartridges = list(cartridges)
        self.number = 0
        self.place = 0

    @property
    def loaded(self) -> Cartridge:
        return self.cartridges[self.number]

    def close(self) -> None:
        for cartridge in self.cartridges:
            cartridge.close()

    def _do(self, code: CommandCode | int, size: int, position: int, view: memoryview | None) -> Outcome:
        match code:
            case CommandCode.READ:
                assert view is not None
                return self._read(view)
            case CommandCode.WRITE:
                assert view is not None
                return self._write(view)
            case CommandCode.WRITE_MARK:
                return self._write_mark()
            case CommandCode.SKIP_MARKS:
                return self._skip(_signed(size), marks=True)
            case CommandCode.SKIP_BLOCKS:
                return self._skip(_signed(size), marks=False)
            case CommandCode.REWIND:
                self.place = 0
                return Outcome()
            case CommandCode.GET_POSITION:
                return Outcome(position=self.place)
            case CommandCode.SET_POSITION:
                # Past the end of data no position was ever returned.
                self.place = min(position, len(self.loaded))
                code = SUCCESS if self.place == position else CompletionCode.NO_DATA_DETECTED
                return Outcome(code, 0, self.place)
            case CommandCode.LOAD:
                if self.number + 1 == len(self.cartridges):
                    return Outcome(CompletionCode.NO_MEDIA_IN_DRIVE)
                self.number += 1
                self.place = 0
                return Outcome()
            case CommandCode.FLUSH:
                self.loaded.sync()
                return Outcome()
        return super()._do(code, size, position, view)

    def _read(self, view: memoryview) -> Outcome:
        tape, done = self.loaded, 0
        while done < len(view):
            if self.place == len(tape):
                return Outcome(CompletionCode.NO_DATA_DETECTED, done)
            if tape.is_mark(self.place):
                self.place += 1
                return Outcome(CompletionCode.FILEMARK_DETECTED, done)
            length = tape.length(self.place)
            if length > len(view) - done:
                return Outcome(CompletionCode.INVALID_BLOCK_LENGTH, done)
            tape.read(self.place, view[done : done + length])
            self.place += 1
            done += length
        return Outcome(SUCCESS, done)

    def _write(self, view: memoryview) -> Outcome:
        if len(view) % self.block_size:
            return Outcome(CompletionCode.INVALID_BLOCK_LENGTH)
        tape = self.loaded
        tape.cut(self.place)
        stored, code = tape.zone.store(tape.used, len(view), self.block_size, CompletionCode.EOM_OVERFLOW)
        for start in range(0, stored, self.block_size):
            tape.append(view[start : start + self.block_size])
        self.place = len(tape)
        return Outcome(code, stored)

    def _write_mark(self) -> Outcome:
        tape = self.loaded
        tape.cut(self.place)
        # A filemark has no count that could tell of it: where there is room, it is written, warning or not.
        code = tape.zone.store(tape.used, MARK_SIZE, MARK_SIZE, CompletionCode.EOM_OVERFLOW)[1]
        if code != CompletionCode.EOM_OVERFLOW:
            tape.append(None)
            self.place = len(tape)
        return Outcome(code)

    def _skip(self, count: int, *, marks: bool) -> Outcome:
        tape, left = self.loaded, abs(count)
        forward = count > 0
        while left:
            if self.place == (len(tape) if forward else 0):
                return Outcome(CompletionCode.NO_DATA_DETECTED if forward else CompletionCode.BEGINNING_OF_MEDIA)
            mark = tape.is_mark(self.place if forward else self.place - 1)
            self.place += 1 if forward else -1
            if mark and not marks:
                return Outcome(CompletionCode.FILEMARK_DETECTED)
            left -= 1 if mark == marks else 0
        return Outcome()


class Disk(Medium):
    """A random-access file: VDF_LikeDisk. Flush makes the last position written the end of the file (7.4).

    Parameters
    ----------
    paths : sequence of Path
        Created where missing. More than one make it removable.
    zones : sequence of Zone
        One for each, or none.
    discard, removable : bool
    """

    def __init__(
        self, paths: Iterable[Path], zones: Iterable[Zone] = (), *, discard: bool = False, removable: bool | None = None
    ) -> None:
        self.paths = list(paths)
        self.removable = len(self.paths) > 1 if removable is None else removable
        super().__init__(
            Feature.LIKE_DISK
            | (Feature.DISCARD if discard else Feature.LIKE_PIPE)
            | (Feature.REMOVABLE if self.removable else Feature.LIKE_PIPE)
        )
        self.zones = list(zones) or [Zone() for _ in self.paths]
        self.number = 0
        self.place = 0
        self._written: int | None = None
        self._fd = self._open()

    def _open(self) -> int:
        return os.open(self.paths[self.number], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def _size(self) -> int:
        return os.fstat(self._fd).st_size

    def _do(self, code: CommandCode | int, size: int, position: int, view: memoryview | None) -> Outcome:
        match code:
            case CommandCode.READ:
                assert view is not None
                count = os.preadv(self._fd, [view], position)
                self.place = position + count
                return Outcome(SUCCESS if count == len(view) else CompletionCode.HANDLE_EOF, count)
            case CommandCode.WRITE:
                assert view is not None
                full = CompletionCode.EOM_OVERFLOW if self.removable else CompletionCode.DISK_FULL
                stored, answer = self.zones[self.number].store(position, len(view), self.block_size, full)
                os.pwritev(self._fd, [view[:stored]], position)
                self.place = self._written = position + stored
                return Outcome(answer, stored)
            case CommandCode.GET_POSITION:
                return Outcome(position=self.place)
            case CommandCode.SET_POSITION:
                bases = {Whence.BEGINNING: 0, Whence.CURRENT: self.place, Whence.END: self._size}
                if size not in bases:
                    return Outcome(CompletionCode.INVALID_PARAMETER, 0, self.place)
                place = bases[Whence(size)] + _signed(position, 64)
                if place < 0:
                    return Outcome(CompletionCode.BEGINNING_OF_MEDIA, 0, self.place)
                self.place = place
                return Outcome(position=place)
            case CommandCode.LOAD if self.removable:
                if self.number + 1 == len(self.paths):
                    return Outcome(CompletionCode.NO_MEDIA_IN_DRIVE)
                self._end_file()
                self.close()
                self.number += 1
                self.place, self._written = 0, None
                self._fd = self._open()
                return Outcome()
            case CommandCode.FLUSH:
                self._end_file()
                os.fsync(self._fd)
                return Outcome()
        return super()._do(code, size, position, view)

    def _end_file(self) -> None:
        if self._written is not None:
            os.ftruncate(self._fd, self._written)


class Pipe(Medium):
    """Pure sequence: no bits, or VDF_Removable where there is more than one volume.

    Parameters
    ----------
    paths : sequence of Path
        Created where missing.
    zones : sequence of Zone
        One for each, or none.
    discard, removable : bool
    """

    def __init__(
        self, paths: Iterable[Path], zones: Iterable[Zone] = (), *, discard: bool = False, removable: bool | None = None
    ) -> None:
        self.paths = list(paths)
        self.removable = len(self.paths) > 1 if removable is None else removable
        super().__init__(
            (Feature.DISCARD if discard else Feature.LIKE_PIPE)
            | (Feature.REMOVABLE if self.removable else Feature.LIKE_PIPE)
        )
        self.zones = list(zones) or [Zone() for _ in self.paths]
        self.number = 0
        self.place = 0
        self._fd = self._open()

    def _open(self) -> int:
        return os.open(self.paths[self.number], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _do(self, code: CommandCode | int, size: int, position: int, view: memoryview | None) -> Outcome:
        match code:
            case CommandCode.READ:
                assert view is not None
                count = os.preadv(self._fd, [view], self.place)
                self.place += count
                return Outcome(SUCCESS if count == len(view) else CompletionCode.HANDLE_EOF, count)
            case CommandCode.WRITE:
                assert view is not None
                full = CompletionCode.EOM_OVERFLOW if self.removable else CompletionCode.DISK_FULL
                stored, answer = self.zones[self.number].store(self.place, len(view), self.block_size, full)
                os.pwritev(self._fd, [view[:stored]], self.place)
                self.place += stored
                return Outcome(answer, stored)
            case CommandCode.LOAD if self.removable:
                if self.number + 1 == len(self.paths):
                    return Outcome(CompletionCode.NO_MEDIA_IN_DRIVE)
                self.close()
                self.number += 1
                self.place = 0
                self._fd = self._open()
                return Outcome()
            case CommandCode.FLUSH:
                os.fsync(self._fd)
                return Outcome()
        return super()._do(code, size, position, view)


def _signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


# ---- served through the client half


def perform(medium: Medium, command: Command) -> Outcome:
    """Let a medium do what a command asks for."""
    if command.code in DATA:
        with memoryview(command) as view:
            return medium.perform(command.code, command.size, command.position, view)
    return medium.perform(command.code, command.size, command.position, None)


def answer(medium: Medium, command: Command) -> Outcome:
    """Perform a command and complete it."""
    outcome = perform(medium, command)
    command.complete(outcome.code, outcome.count, outcome.position)
    return outcome


class Client:
    """A device set whose devices are media, each served by a thread of its own; a context manager.

    Parameters
    ----------
    media : sequence of Medium
        One per device.
    features : Feature
        Asked for beside those of the media.
    ahead : int
        Commands that are fetched before the first of them is performed, if there are so many; those that were fetched
        together are completed in reverse.
    config : int
        Further fields of `DeviceSetConfig`.
    """

    def __init__(
        self, media: Iterable[Medium], features: Feature = Feature.LIKE_PIPE, *, ahead: int = 1, **config: int
    ) -> None:
        self.media = list(media)
        self._ahead = ahead
        asked = features | self.media[0].features
        assert all(medium.features == self.media[0].features for medium in self.media)
        self.set = VirtualDeviceSet.create(
            config=DeviceSetConfig(device_count=len(self.media), features=asked, **config),  # type: ignore[arg-type]
            provider="embedded",
        )
        self.names = [self.set.name, *(f"{self.set.name} {number}" for number in range(1, len(self.media)))]
        self.config: DeviceSetConfig | None = None
        self.errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, name="media")
        self._thread.start()

    @property
    def clauses(self) -> str:
        return ", ".join(f"VIRTUAL_DEVICE = N'{name}'" for name in self.names)

    def _run(self) -> None:
        try:
            self.config = self.set.get_configuration(60)
            for medium in self.media:
                medium.block_size = self.config.block_size
            devices = [self.set.open_device(name) for name in self.names]
        except BaseException as error:
            self.errors.append(error)
            return
        threads = [
            threading.Thread(target=self._serve, args=pair) for pair in zip(self.media, devices, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _serve(self, medium: Medium, device: VirtualDevice) -> None:
        try:
            for command in device:
                batch = [command]
                try:
                    while len(batch) < self._ahead:
                        batch.append(device.get_command(0))
                except (VDTimeoutError, VDClosedError):
                    pass
                outcomes = [(command, perform(medium, command)) for command in batch]
                for command, outcome in reversed(outcomes):
                    command.complete(outcome.code, outcome.count, outcome.position)
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> None:
        """Wait until the devices are closed or the set is aborted."""
        self._thread.join()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None or self.config is None:
            try:
                self.set.signal_abort("the test is over")
            except VDError:
                pass  # closed already
        self.join()
        try:
            self.set.close()
        except VDError:
            pass  # an abort, which a test sees elsewhere
        for medium in self.media:
            medium.close()
        if error is None:
            assert self.errors == []
