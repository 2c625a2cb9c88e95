"""One device of a transfer and the places of its commands; what makes the data of a device, and what takes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..constants import CommandCode
from ..mtf import FamilyInfo, MediaSet
from ..server import Completion, ServerBuffer, ServerDevice
from .steps import Drive, Request, Steps

Bytes = npt.NDArray[np.uint8]


class Item(Protocol):
    """A piece of a stream that one command takes."""

    @property
    def size(self) -> int:
        """Bytes; 0 for a filemark, which the device is to write."""

    @property
    def payload(self) -> int:
        """Bytes that count as progress."""


class Filemark:
    """The place of a filemark that the device keeps itself."""

    size = 0
    payload = 0


class Producer(Protocol):
    """Streams to be written, one per device."""

    def next(self, number: int) -> Item | None: ...

    def make(self, number: int, item: Any, data: Bytes) -> None: ...


class Spanning(Producer, Protocol):
    """Streams that can go on on another volume."""

    @property
    def media(self) -> MediaSet: ...

    def family(self, number: int) -> int:
        """Which family of the media set device `number` holds, from 1."""

    def label(self, number: int, sequence: int) -> bytes:
        """What begins volume `sequence` of device `number`."""

    def continuation(self, number: int, place: int, address: int) -> bytes:
        """What is repeated there before byte `place` of the stream comes; see `FamilyWriter.continuation`."""


class Consumer(Protocol):
    """Streams to be read, one per device. What has a body here need not be said by one that reads raw bytes."""

    def open(self, *, keeps_marks: bool) -> None:
        """The devices are open; whether they keep filemarks themselves."""
        return None

    def wanted(self, number: int) -> int:
        """Bytes that device `number` is certain to hold still; 0 when no more are needed."""

    def accept(self, number: int, data: Bytes) -> int:
        """Take the next bytes; returns how many of them count as progress."""

    def end(self, number: int) -> None:
        """The device has no more data. Raises if that is too early."""

    def at_mark(self, number: int) -> bool:
        """A filemark comes next that the device keeps itself."""
        return False

    def mark(self, number: int) -> None:
        """The device met a filemark. Raises if none belongs there."""
        return None

    def skippable(self, number: int) -> int:
        """Bytes that come next and that nobody wants."""
        return 0

    def skip(self, number: int, count: int) -> None:
        """They were not read."""
        return None

    def info(self, number: int) -> FamilyInfo | None:
        """What the beginning of the stream said, once it was read."""
        return None

    def continues(self, number: int) -> bool:
        """Whether an end of the data here can only be that of a volume."""
        return False

    def go_to(self, number: int, file: int, place: int, marks: Sequence[int]) -> None:
        """The label was taken; what comes next is set `file`."""
        return None


class Slot:
    """A buffer, or the place of a command without one. Called with its completion on the agent's thread."""

    __slots__ = ("buffer", "code", "data", "lane", "size", "position", "payload", "completion", "heard", "_events")

    def __init__(self, events: SimpleQueue[Slot], buffer: ServerBuffer | None = None) -> None:
        self._events = events
        self.buffer = buffer
        self.data: Bytes | None = None if buffer is None else np.frombuffer(buffer, np.uint8)
        self.lane: Lane | None = None
        self.code = CommandCode.CLEAR_ERROR
        self.size = 0
        self.position = 0
        self.payload = 0
        self.completion: Completion | None = None
        self.heard = False  # the transferring thread has seen the completion

    def __call__(self, completion: Completion) -> None:
        self.completion = completion
        self._events.put(self)


class Lane:
    """One device."""

    def __init__(self, number: int, device: ServerDevice, drive: Drive, slot: Callable[[bool], Slot]) -> None:
        self.number = number
        self.device = device
        self.drive = drive
        self.own_small = slot(True)
        self.small: Slot | None = self.own_small  # None while it is out
        self.control = slot(False)
        self.item: Item | None = None
        self.outstanding = 0
        self.order: deque[Slot] = deque()  # of transfers and filemarks, as sent
        self.asked = 0  # bytes of transfers that are out
        self.blocked = False  # in IO-ERROR, or at the end of its data
        self.eof = False
        self.stale = False  # reads that are out are of places which are not read yet
        self.exhausted = False
        self.todo: deque[CommandCode] = deque()  # after the data
        self.done = False
        # Steps of its own, while the stream of data waits.
        self.steps: Steps[Any] | None = None
        self.request: Request | None = None
        self.then: Callable[[Any], None] | None = None
        # The end of a volume.
        self.sequence = 1
        self.place = 0  # of the stream's next byte to be stored, from the beginning of the first volume
        self.ending = False
        self.left: deque[Slot] = deque()  # writes that were not stored, or not all of them
        self.met_mark = False
        self.strayed = False  # reads went beyond it
        self.skips = True


def load(lane: Lane) -> int:
    return lane.outstanding
