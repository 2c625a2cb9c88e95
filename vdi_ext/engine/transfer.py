"""Commands to the devices of one set, as SQL Server sends them.

One pool of large buffers serves all devices; several commands are in flight per device, and the one with the fewest
goes first. One thread makes or takes the data, in the shared buffers themselves; completions reach it through a queue
from the agent's thread.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..constants import CommandCode, CompletionCode
from ..errors import VDAbortError, VDIOError
from ..server import Completion, ServerBuffer, ServerDevice, ServerDeviceSet

SMALL_BUFFER = 65536  # bytes of a buffer for metadata; one per device, beside BUFFERCOUNT

Bytes = npt.NDArray[np.uint8]


class TransferError(Exception):
    """A device did not do what it was asked to.

    Parameters
    ----------
    device : str
    what : str
        ``"write"``, ``"read"``, or a command's name: ``"Flush"``, ``"ClearError"``, ``"Snapshot"`` ...
    code : int
        Completion code.
    done, size : int
        Bytes transferred and bytes asked for.
    """

    def __init__(self, device: str, what: str, code: int, done: int = 0, size: int = 0) -> None:
        super().__init__(device, what, code, done, size)
        self.device = device
        self.what = what
        self.code = int(code)
        self.done = done
        self.size = size


class Item(Protocol):
    """A piece of a stream that one command takes."""

    @property
    def size(self) -> int:
        """Bytes."""

    @property
    def payload(self) -> int:
        """Bytes that count as progress."""


class Producer(Protocol):
    """Streams to be written, one per device."""

    def next(self, number: int) -> Item | None: ...

    def make(self, number: int, item: Any, data: Bytes) -> None: ...


class Consumer(Protocol):
    """Streams to be read, one per device."""

    def wanted(self, number: int) -> int:
        """Bytes that device `number` is certain to hold still; 0 when no more are needed."""

    def accept(self, number: int, data: Bytes) -> int:
        """Take the next bytes; returns how many of them count as progress."""

    def end(self, number: int) -> None:
        """The device has no more data. Raises if that is too early."""


class _Slot:
    """A buffer, or the place of a command without one. Called with its completion on the agent's thread."""

    __slots__ = ("buffer", "data", "lane", "size", "payload", "completion", "heard", "_events")

    def __init__(self, events: SimpleQueue[_Slot], buffer: ServerBuffer | None = None) -> None:
        self._events = events
        self.buffer = buffer
        self.data: Bytes | None = None if buffer is None else np.frombuffer(buffer, np.uint8)
        self.lane: _Lane | None = None
        self.size = 0
        self.payload = 0
        self.completion: Completion | None = None
        self.heard = False  # the transferring thread has seen the completion

    def __call__(self, completion: Completion) -> None:
        self.completion = completion
        self._events.put(self)


class _Lane:
    """One device."""

    def __init__(self, number: int, device: ServerDevice, small: _Slot, control: _Slot) -> None:
        self.number = number
        self.device = device
        self.small: _Slot | None = small  # None while it is out
        self.own_small = small
        self.control = control
        self.item: Item | None = None
        self.outstanding = 0
        self.position = 0
        self.order: deque[_Slot] = deque()  # of reads, as sent
        self.asked = 0  # bytes of reads that are out
        self.blocked = False  # in IO-ERROR, or at the end of its data
        self.eof = False
        self.exhausted = False
        self.todo: deque[CommandCode] = deque()  # after the data
        self.done = False


class Transfer:
    """Moves the data of one statement.

    Parameters
    ----------
    device_set : ServerDeviceSet
        Configured.
    devices : list of ServerDevice
        Open.
    buffers, transfer_size, block_size : int
        Number of large buffers; bytes of each; bytes that every transfer is a multiple of.
    random_access : bool
        Commands carry a position.
    progress : callable
        Called with bytes.
    """

    def __init__(
        self,
        device_set: ServerDeviceSet,
        devices: list[ServerDevice],
        *,
        buffers: int,
        transfer_size: int,
        block_size: int,
        random_access: bool,
        progress: Callable[[int], None],
    ) -> None:
        self._set = device_set
        self._transfer_size = transfer_size
        self._block_size = block_size
        self._random_access = random_access
        self._progress = progress
        self._events: SimpleQueue[_Slot] = SimpleQueue()
        self._outstanding = 0
        # A slow device keeps its share and no more; two commands let it work on one while the other travels.
        self._share = max(2, -(-buffers // len(devices)))
        self._slots: list[_Slot] = []
        self._free: list[_Slot] = []
        try:
            for _ in range(buffers):
                self._free.append(self._slot(transfer_size))
            self._lanes = [
                _Lane(number, device, self._slot(SMALL_BUFFER), _Slot(self._events))
                for number, device in enumerate(devices)
            ]
        except BaseException:
            self.release()
            raise

    def _slot(self, size: int) -> _Slot:
        slot = _Slot(self._events, self._set.allocate_buffer(size))
        self._slots.append(slot)
        return slot

    def release(self) -> None:
        """Drop every view of the shared buffers."""
        for slot in self._slots:
            slot.data = None

    # ---- backup

    def write(self, producer: Producer, last: tuple[CommandCode, ...]) -> None:
        """Send what the producer makes, then the commands `last` to each device. Again and again, if wanted.

        Raises
        ------
        TransferError
            A device failed; nothing is outstanding any more.
        VDAbortError
            The set was aborted.
        """
        for each in self._lanes:
            each.todo.extend(last)
            each.blocked = each.exhausted = each.done = False
        while True:
            self._send_writes(producer)
            if all(lane.done for lane in self._lanes):
                return
            slot = self._wait()
            lane, completion = slot.lane, slot.completion
            if slot is lane.control:
                code = lane.todo.popleft()
                if completion.code != CompletionCode.SUCCESS:
                    self._fail(TransferError(lane.device.name, code.name.title().replace("_", ""), completion.code))
                continue
            done = completion.bytes_transferred
            if completion.code != CompletionCode.SUCCESS or done != slot.size:
                self._fail(TransferError(lane.device.name, "write", completion.code, done, slot.size))
            self._put_back(slot)
            if slot.payload:
                self._progress(slot.payload)

    def _send_writes(self, producer: Producer) -> None:
        while True:
            ready = [lane for lane in self._lanes if self._can_write(lane, producer)]
            if not ready:
                break
            lane = min(ready, key=_load)
            item = lane.item
            assert item is not None
            lane.item = None
            slot = self._take(lane, item.size)
            assert slot is not None and slot.data is not None
            producer.make(lane.number, item, slot.data[: item.size])
            slot.payload = item.payload
            self._send(lane, slot, CommandCode.WRITE, item.size)
        for lane in self._lanes:
            if lane.exhausted and not lane.outstanding and lane.todo and not lane.blocked:
                self._send(lane, lane.control, lane.todo[0], 0)
            lane.done = lane.exhausted and not lane.outstanding and not lane.todo

    def _can_write(self, lane: _Lane, producer: Producer) -> bool:
        if lane.exhausted or lane.blocked or lane.outstanding >= self._share or not (self._free or lane.small):
            return False
        if lane.item is None:
            # Extents are dealt here: only to a device that can take them at once.
            if not self._free:
                return False
            lane.item = producer.next(lane.number)
            if lane.item is None:
                lane.exhausted = True
                return False
        return bool(self._free) or lane.item.size <= SMALL_BUFFER

    # ---- restore

    def read(self, consumer: Consumer) -> None:
        """Read every device until the consumer has what it wants.

        Raises
        ------
        TransferError, VDAbortError
            As `write`.
        Exception
            What the consumer raised; nothing is outstanding any more.
        """
        while True:
            self._send_reads(consumer)
            if all(lane.done for lane in self._lanes):
                return
            slot = self._wait()
            lane = slot.lane
            assert lane is not None
            if slot is lane.control:
                assert slot.completion is not None
                if slot.completion.code != CompletionCode.SUCCESS:
                    self._fail(TransferError(lane.device.name, "ClearError", slot.completion.code))
                lane.done = True
                continue
            # Completions may come in another order than their commands were sent in.
            while lane.order and lane.order[0].heard:
                self._take_read(lane, lane.order.popleft(), consumer)

    def _take_read(self, lane: _Lane, slot: _Slot, consumer: Consumer) -> None:
        completion = slot.completion
        assert completion is not None and slot.data is not None
        code, done = completion.code, completion.bytes_transferred
        lane.asked -= slot.size
        at_end = code in (CompletionCode.HANDLE_EOF, CompletionCode.NO_DATA_DETECTED)
        if lane.eof:
            # Reads that were sent before the end was known: refused by the provider, or empty.
            if done or not (at_end or code == CompletionCode.IO_DEVICE):
                self._fail(TransferError(lane.device.name, "read", code, done, slot.size))
        elif done > slot.size or not (at_end or code == CompletionCode.SUCCESS) or not (done or at_end):
            # No data and no end would never end.
            bad = code if code != CompletionCode.SUCCESS else CompletionCode.IO_DEVICE
            self._fail(TransferError(lane.device.name, "read", bad, done, slot.size))
        try:
            if done and not lane.eof:
                lane.position += done
                counted = consumer.accept(lane.number, slot.data[:done])
                if counted:
                    self._progress(counted)
            if at_end and not lane.eof:
                lane.eof = lane.blocked = True
                consumer.end(lane.number)
        except Exception:
            self._drain()
            raise
        self._put_back(slot)

    def _send_reads(self, consumer: Consumer) -> None:
        sent = True
        while sent:
            sent = False
            for lane in sorted(self._lanes, key=_load):
                if lane.done or lane.blocked or lane.outstanding >= self._share:
                    continue
                wanted = consumer.wanted(lane.number)
                wanted = -(-wanted // self._block_size) * self._block_size - lane.asked
                size = min(wanted, self._transfer_size)
                slot = self._take(lane, size) if size > 0 else None
                if slot is None:
                    continue
                lane.order.append(slot)
                lane.asked += size
                if self._send(lane, slot, CommandCode.READ, size, lane.position + lane.asked - size):
                    sent = True
                else:
                    lane.order.pop()
                    lane.asked -= size
        for lane in self._lanes:
            if lane.done or lane.outstanding or lane.order or not (lane.eof or consumer.wanted(lane.number) == 0):
                continue
            if lane.eof:
                # The end of data put the device into IO-ERROR.
                self._send(lane, lane.control, CommandCode.CLEAR_ERROR, 0)
            else:
                lane.done = True

    # ---- both

    def _take(self, lane: _Lane, size: int) -> _Slot | None:
        """A free buffer: the device's small one where that is enough, else the large one that was used last."""
        if size <= SMALL_BUFFER and lane.small is not None:
            slot, lane.small = lane.small, None
            return slot
        return self._free.pop() if self._free else None

    def _put_back(self, slot: _Slot) -> None:
        lane = slot.lane
        assert lane is not None
        if slot is lane.own_small:
            lane.small = slot
        else:
            self._free.append(slot)

    def _send(self, lane: _Lane, slot: _Slot, code: CommandCode, size: int, position: int | None = None) -> bool:
        """Send a command; False where the device is in IO-ERROR, whose cause is on its way to us."""
        slot.lane = lane
        slot.size = size
        slot.completion = None
        slot.heard = False
        if code == CommandCode.WRITE:
            position = lane.position
            lane.position += size
        try:
            lane.device.send_command(
                code, slot.buffer, size=size, position=position or 0 if self._random_access else 0, callback=slot
            )
        except VDIOError:
            lane.blocked = True
            if slot.buffer is not None:
                self._put_back(slot)
            return False
        lane.outstanding += 1
        self._outstanding += 1
        return True

    def _wait(self) -> _Slot:
        """The next command that is complete. Raises `VDAbortError` where an abort completed it."""
        slot = self._events.get()
        slot.heard = True
        lane, completion = slot.lane, slot.completion
        assert lane is not None and completion is not None
        lane.outstanding -= 1
        self._outstanding -= 1
        if completion.code == CompletionCode.OPERATION_ABORTED:
            self._set.get_configuration()  # a client may complete with this code by itself
        return slot

    def _drain(self) -> None:
        """Wait for all that is outstanding: a failure alone aborts nothing (section 9.2)."""
        with contextlib.suppress(VDAbortError):  # what failed before that is the news
            while self._outstanding:
                self._wait()

    def _fail(self, error: TransferError) -> None:
        self._drain()
        raise error


def _load(lane: _Lane) -> int:
    return lane.outstanding
