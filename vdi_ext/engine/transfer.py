"""Commands to the devices of one set, as SQL Server sends them.

One pool of large buffers serves all devices; several commands are in flight per device, and the one with the fewest
goes first. One thread makes or takes the data, in the shared buffers themselves; completions reach it through a queue
from the agent's thread. What a device has to do besides its stream of data (position itself, change its medium) are
`Steps`, which that thread runs too, while the others go on.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, cast

import numpy as np

from ..constants import CommandCode, CompletionCode, Whence
from ..errors import VDAbortError, VDIOError
from ..mtf.pages import PAGE_SIZE
from ..server import Completion, ServerDevice, ServerDeviceSet
from .continuation import change_for_reading, change_for_writing, is_next_volume_wanted, store_rest
from .lane import Bytes, Consumer, Filemark, Item, Lane, Producer, Slot, Spanning, load
from .positioning import Feed, Place, go_to_set
from .steps import ENDS, MARK, WARNING, Answer, Drive, Kind, Steps, TransferError, abandon, name_of, write_zone

__all__ = ["SMALL_BUFFER", "Bytes", "Consumer", "Filemark", "Item", "Producer", "Transfer", "TransferError"]

SMALL_BUFFER = 65536  # bytes of a buffer for metadata; one per device, beside BUFFERCOUNT


class Transfer:
    """Moves the data of one statement.

    Parameters
    ----------
    device_set : ServerDeviceSet
        Configured.
    devices : list of ServerDevice
        Open.
    kind : Kind
        Of all devices.
    buffers, transfer_size, block_size : int
        Number of large buffers; bytes of each; bytes that every transfer is a multiple of.
    progress : callable
        Called with bytes.
    may_overwrite : bool
        A further medium may hold something else.
    """

    def __init__(
        self,
        device_set: ServerDeviceSet,
        devices: list[ServerDevice],
        *,
        kind: Kind,
        buffers: int,
        transfer_size: int,
        block_size: int,
        progress: Callable[[int], None],
        may_overwrite: bool = False,
    ) -> None:
        self._set = device_set
        self._kind = kind
        self._transfer_size = transfer_size
        self._block_size = block_size
        self._progress = progress
        self._may_overwrite = may_overwrite
        self._events: SimpleQueue[Slot] = SimpleQueue()
        self._outstanding = 0
        # A slow device keeps its share and no more; two commands let it work on one while the other travels.
        self._share = max(2, -(-buffers // len(devices)))
        self._zone = write_zone(kind, block_size)
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        try:
            for _ in range(buffers):
                self._free.append(self._slot(transfer_size))
            self._lanes = [
                Lane(number, device, Drive(kind, device.name, block_size), self._slot_of_lane)
                for number, device in enumerate(devices)
            ]
        except BaseException:
            self.release()
            raise

    def _slot(self, size: int) -> Slot:
        slot = Slot(self._events, self._set.allocate_buffer(size))
        self._slots.append(slot)
        return slot

    def _slot_of_lane(self, with_buffer: bool) -> Slot:
        return self._slot(SMALL_BUFFER) if with_buffer else Slot(self._events)

    def release(self) -> None:
        """Drop every view of the shared buffers."""
        for slot in self._slots:
            slot.data = None

    # ---- steps

    def run(self, steps: Callable[[int, Drive], Steps[Any]]) -> list[Any]:
        """Run steps of each device, all devices at once, while no data moves.

        Parameters
        ----------
        steps : callable
            Called with the number of a device and the device.

        Returns
        -------
        list
            What each returned.

        Raises
        ------
        TransferError, VDAbortError
            As `write`.
        Exception
            What the steps raised; nothing is outstanding any more.
        """
        results: list[Any] = [None] * len(self._lanes)
        for lane in self._lanes:
            self._begin(lane, steps(lane.number, lane.drive), functools.partial(results.__setitem__, lane.number))
        while any(lane.steps is not None for lane in self._lanes):
            slot = self._wait()
            assert slot.lane is not None
            self._answer(slot.lane, slot)
        return results

    def place(self, places: Sequence[Place]) -> None:
        """Say where on its medium each device's stream begins, after steps brought it there."""
        for lane, place in zip(self._lanes, places, strict=True):
            lane.place = place.start
            lane.sequence = place.sequence

    def position(self, consumer: Consumer, file: int) -> None:
        """Bring each device to set `file`, as far as it can. Raises as `run`."""

        def steps(number: int, drive: Drive) -> Steps[None]:
            def accept(data: bytes) -> None:
                consumer.accept(number, _array(data))

            feed = Feed(
                accept, lambda: consumer.mark(number), lambda: consumer.info(number),
                lambda found, place, marks: consumer.go_to(number, found, place, marks),
            )  # fmt: skip
            return go_to_set(drive, file, feed)

        consumer.open(keeps_marks=self._kind.keeps_marks)
        if self._kind.positions:
            self.run(steps)

    def rewind(self) -> None:
        """Bring each device back to the beginning of its medium."""
        self.run(lambda number, drive: drive.rewind())

    def discard(self) -> None:
        """Tell each device that understands it that the data are not wanted; after a failure, nothing outstanding."""
        if self._kind.discards:
            self.run(lambda number, drive: abandon(drive))

    def _begin(self, lane: Lane, steps: Steps[Any], then: Callable[[Any], None]) -> None:
        lane.steps, lane.then = steps, then
        self._advance(lane, None)

    def _advance(self, lane: Lane, answer: Answer | None) -> None:
        """Give an answer to the steps of a device, and send what they ask for next."""
        assert lane.steps is not None and lane.then is not None
        while True:
            try:
                request = lane.steps.send(cast(Answer, answer))
            except StopIteration as stop:
                lane.steps, then = None, lane.then
                self._guard(functools.partial(then, stop.value))
                return
            except BaseException:
                lane.steps = None
                self._drain()
                raise
            lane.request = request
            slot = request.slot or (lane.control if not _transfers(request.code) else lane.own_small)
            size = len(request.data) or request.size
            if request.data:
                assert slot.data is not None
                slot.data[:size] = memoryview(request.data)
            if self._send(lane, slot, request.code, size, request.position):
                return
            answer = Answer(CompletionCode.IO_DEVICE)  # refused: the device is in IO-ERROR

    def _answer(self, lane: Lane, slot: Slot) -> None:
        completion = slot.completion
        assert completion is not None and lane.request is not None
        data = b""
        if lane.request.code == CommandCode.READ:
            assert slot.data is not None
            data = bytes(slot.data[: min(completion.bytes_transferred, slot.size)])
        if slot is lane.own_small:
            lane.small = slot
        self._advance(lane, Answer(completion.code, completion.bytes_transferred, completion.position, data))

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
            assert lane is not None and completion is not None
            if lane.steps is not None:
                self._answer(lane, slot)
            elif slot is lane.control:
                code = lane.todo.popleft()
                if completion.code != CompletionCode.SUCCESS:
                    self._fail(TransferError(lane.device.name, name_of(code), completion.code))
            else:
                while lane.order and lane.order[0].heard:
                    self._take_write(lane, lane.order.popleft())
                if lane.ending and not lane.outstanding:
                    self._end_volume(lane, producer)

    def _take_write(self, lane: Lane, slot: Slot) -> None:
        """Look at how a write was completed; in the order in which they were sent."""
        completion = slot.completion
        assert completion is not None
        code, done = completion.code, completion.bytes_transferred if slot.code == CommandCode.WRITE else 0
        lane.asked -= slot.size
        if code == WARNING and self._kind.removable:
            lane.ending = lane.blocked = True
        elif code != CompletionCode.SUCCESS and not (lane.ending and code == CompletionCode.IO_DEVICE):
            self._fail(TransferError(lane.device.name, name_of(slot.code), code, done, slot.size))
        stored = code != CompletionCode.IO_DEVICE and done == slot.size
        # What is behind something that was not stored must not be stored either, or the order is lost.
        lost = bool(lane.left) and (stored or done > 0)
        if lost or done > slot.size or done % self._block_size or not (stored or lane.ending):
            self._fail(TransferError(lane.device.name, "write", code, done, slot.size))
        lane.place += done
        if stored:
            self._put_back(slot)
            if slot.payload:
                self._progress(slot.payload)
            return
        if done:
            assert slot.data is not None
            slot.size -= done
            slot.data[: slot.size] = slot.data[done : done + slot.size].copy()
        if not lane.left:
            lane.drive.position = slot.position + done
        lane.left.append(slot)

    def _end_volume(self, lane: Lane, producer: Producer) -> None:
        """The medium has warned, and all that was on its way has come back."""
        lane.ending = False
        lane.item = lane.item or producer.next(lane.number)
        if isinstance(lane.item, Filemark):
            # What it ends is on this volume, so it is too.
            mark = Slot(self._events)
            mark.lane, mark.code = lane, CommandCode.WRITE_MARK
            lane.left.append(mark)
            lane.item = producer.next(lane.number)
        lane.exhausted = lane.item is None
        kept = list(lane.left)

        def done(_: None) -> None:
            for slot in kept:
                self._put_back(slot)
                if slot.payload:
                    self._progress(slot.payload)
            lane.blocked = lane.ending = False

        def store(count: int) -> None:
            lane.place += count

        if lane.exhausted:
            self._begin(lane, store_rest(lane, store), done)
        elif not hasattr(producer, "continuation"):
            self._fail(TransferError(lane.device.name, "write", WARNING))
        else:
            self._begin(lane, change_for_writing(lane, cast(Spanning, producer), self._may_overwrite, store), done)

    def _send_writes(self, producer: Producer) -> None:
        while True:
            ready = [lane for lane in self._lanes if self._can_write(lane, producer)]
            if not ready:
                break
            lane = min(ready, key=load)
            item = lane.item
            assert item is not None
            lane.item = None
            if isinstance(item, Filemark):
                slot, code = Slot(self._events), CommandCode.WRITE_MARK
            else:
                found = self._take(lane, item.size)
                assert found is not None and found.data is not None
                slot, code = found, CommandCode.WRITE
                producer.make(lane.number, item, found.data[: item.size])
            slot.payload = item.payload
            lane.order.append(slot)
            lane.asked += item.size
            if self._send(lane, slot, code, item.size, lane.drive.position):
                lane.drive.position += item.size
            else:
                # The cause is on its way to us; if it is the end of the medium, this has to be sent again.
                slot.completion = Completion(CompletionCode.IO_DEVICE, 0, 0)
                slot.heard = lane.blocked = True
        for lane in self._lanes:
            if lane.steps is not None or lane.blocked or lane.ending:
                continue
            if lane.exhausted and not lane.outstanding and lane.todo:
                self._send(lane, lane.control, lane.todo[0], 0)
            lane.done = lane.exhausted and not lane.outstanding and not lane.todo

    def _can_write(self, lane: Lane, producer: Producer) -> bool:
        if lane.exhausted or lane.blocked or lane.steps is not None or lane.outstanding >= self._share:
            return False
        if lane.item is None:
            # Extents are dealt here: only to a device that can take them at once.
            if not self._free:
                return False
            lane.item = producer.next(lane.number)
            if lane.item is None:
                lane.exhausted = True
                return False
        if isinstance(lane.item, Filemark):
            return True
        if self._zone is not None and lane.asked and lane.asked + lane.item.size > self._zone:
            return False
        return bool(self._free) or (lane.item.size <= SMALL_BUFFER and lane.small is not None)

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
            if lane.steps is not None:
                self._answer(lane, slot)
                continue
            # Completions may come in another order than their commands were sent in.
            while lane.order and lane.order[0].heard:
                self._take_read(lane, lane.order.popleft(), consumer)
            if lane.blocked and not lane.outstanding and lane.steps is None:
                self._begin_after_end(lane, consumer)

    def _take_read(self, lane: Lane, slot: Slot, consumer: Consumer) -> None:
        completion = slot.completion
        assert completion is not None and slot.data is not None
        code, done = completion.code, completion.bytes_transferred
        lane.asked -= slot.size
        at_end = code in ENDS or (code == MARK and self._kind.keeps_marks)
        if lane.eof:
            # Reads that were sent before the end was known: refused by the provider, or empty; or, on a tape whose
            # client had fetched them too, of what lies behind the filemark.
            lane.strayed = lane.met_mark and code != CompletionCode.IO_DEVICE or lane.strayed
            if (done and not lane.strayed) or not (at_end or lane.strayed or code == CompletionCode.IO_DEVICE):
                self._fail(TransferError(lane.device.name, "read", code, done, slot.size))
        elif done > slot.size or not (at_end or code == CompletionCode.SUCCESS) or not (done or at_end):
            # No data and no end would never end.
            bad = code if code != CompletionCode.SUCCESS else CompletionCode.IO_DEVICE
            self._fail(TransferError(lane.device.name, "read", bad, done, slot.size))
        elif self._kind.is_addressed and slot.position != lane.drive.position:
            pass  # a read before it was short: this comes again
        else:
            lane.drive.position += done
            # On a device that is addressed, those behind a short read begin too far on.
            lane.stale = self._kind.is_addressed and done < slot.size
            if done:
                try:
                    counted = consumer.accept(lane.number, slot.data[:done])
                except Exception:
                    self._drain()
                    raise
                if counted:
                    self._progress(counted)
            if at_end:
                lane.eof = lane.blocked = True
                lane.met_mark = code == MARK
                lane.drive.marks += code == MARK
        self._put_back(slot)

    def _begin_after_end(self, lane: Lane, consumer: Consumer) -> None:
        """The data of a device ended, at a filemark or altogether, and it is in IO-ERROR."""
        if lane.met_mark:
            lane.met_mark = False
            self._cross(lane, consumer, True)
            return
        spans = self._kind.removable and not self._kind.keeps_marks  # a cartridge says itself that it goes on
        if spans and consumer.continues(lane.number):
            self._begin(lane, self._continue(lane, consumer, True), lambda _: _go_on(lane))
            return

        def cleared(_: None) -> None:
            lane.done = True

        self._guard(lambda: consumer.end(lane.number))
        self._begin(lane, lane.drive.clear(), cleared)

    def _cross(self, lane: Lane, consumer: Consumer, met: bool) -> None:
        """Go across a filemark; `met`: a read ran into it already."""

        def steps() -> Steps[bool]:
            if met:
                yield from lane.drive.clear()
                if lane.strayed:
                    lane.strayed = False
                    yield from lane.drive.behind_mark()
            else:
                answer = yield from lane.drive.read(self._block_size)
                if answer.data:
                    consumer.accept(lane.number, _array(answer.data))
                if answer.code in ENDS:
                    consumer.end(lane.number)
                    return True
            return (yield from is_next_volume_wanted(lane.drive))

        def crossed(volume: bool) -> None:
            if not volume:
                consumer.mark(lane.number)
                _go_on(lane)
                return
            self._begin(lane, self._continue(lane, consumer, False), lambda _: _go_on(lane))

        self._begin(lane, steps(), crossed)

    def _continue(self, lane: Lane, consumer: Consumer, clear: bool) -> Steps[None]:
        if clear:
            yield from lane.drive.clear()
        info = consumer.info(lane.number)
        assert info is not None
        yield from change_for_reading(lane, info)

    def _send_reads(self, consumer: Consumer) -> None:
        sent = True
        while sent:
            sent = False
            for lane in sorted(self._lanes, key=load):
                if lane.done or lane.blocked or lane.steps is not None or lane.outstanding >= self._share:
                    continue
                if lane.stale and lane.outstanding:
                    continue
                lane.stale = False
                if consumer.at_mark(lane.number) or self._skip(lane, consumer):
                    continue
                wanted = consumer.wanted(lane.number)
                wanted = -(-wanted // self._block_size) * self._block_size - lane.asked
                size = min(wanted, self._transfer_size)
                slot = self._take(lane, size) if size > 0 else None
                if slot is None:
                    continue
                lane.order.append(slot)
                lane.asked += size
                if self._send(lane, slot, CommandCode.READ, size, lane.drive.position + lane.asked - size):
                    sent = True
                else:
                    lane.blocked = True
                    self._put_back(slot)
                    lane.order.pop()
                    lane.asked -= size
        for lane in self._lanes:
            if lane.done or lane.outstanding or lane.order or lane.steps is not None or lane.blocked:
                continue
            if consumer.at_mark(lane.number):
                self._cross(lane, consumer, False)
            elif consumer.wanted(lane.number) == 0:
                lane.done = True

    def _skip(self, lane: Lane, consumer: Consumer) -> bool:
        """Pass over data that nobody wants, on a device that can; whether it is on its way to do so."""
        if lane.outstanding or not self._kind.positions or not lane.skips:
            return False
        unit = max(PAGE_SIZE, self._block_size)
        count = consumer.skippable(lane.number) // unit * unit
        if not count:
            return False
        def skipped(done: bool) -> None:
            if done:
                consumer.skip(lane.number, count)
            else:
                lane.skips = False

        skip = _skip_bytes if self._kind.is_addressed else _skip_blocks
        self._begin(lane, skip(lane.drive, count), skipped)
        return lane.steps is not None

    # ---- both

    def _take(self, lane: Lane, size: int) -> Slot | None:
        """A free buffer: the device's small one where that is enough, else the large one that was used last."""
        if size <= SMALL_BUFFER and lane.small is not None:
            slot, lane.small = lane.small, None
            return slot
        return self._free.pop() if self._free else None

    def _put_back(self, slot: Slot) -> None:
        lane = slot.lane
        assert lane is not None
        if slot is lane.own_small:
            lane.small = slot
        elif slot.buffer is not None:
            self._free.append(slot)

    def _send(self, lane: Lane, slot: Slot, code: CommandCode, size: int, position: int = 0) -> bool:
        """Send a command; False where the device is in IO-ERROR, whose cause is on its way to us."""
        slot.lane = lane
        slot.code = code
        slot.size = size
        slot.position = position
        slot.completion = None
        slot.heard = False
        addressed = self._kind.is_addressed or not _transfers(code)
        try:
            lane.device.send_command(
                code, slot.buffer, size=size, position=position if addressed else 0, callback=slot
            )
        except VDIOError:
            return False
        lane.outstanding += 1
        self._outstanding += 1
        return True

    def _wait(self) -> Slot:
        """The next command that is complete. Raises `VDAbortError` where an abort completed it."""
        if not self._outstanding:
            raise RuntimeError("the transfer waits for nothing")  # rather than for ever
        slot = self._events.get()
        slot.heard = True
        lane, completion = slot.lane, slot.completion
        assert lane is not None and completion is not None
        lane.outstanding -= 1
        self._outstanding -= 1
        if completion.code == CompletionCode.OPERATION_ABORTED:
            self._set.get_configuration()  # a client may complete with this code by itself
        return slot

    def _guard(self, act: Callable[[], object]) -> None:
        """Do what may fail; if it does, wait first for all that is outstanding."""
        try:
            act()
        except Exception:
            self._drain()
            raise

    def _drain(self) -> None:
        """Wait for all that is outstanding: a failure alone aborts nothing (section 9.2)."""
        for lane in self._lanes:
            lane.steps = None
        with contextlib.suppress(VDAbortError):  # what failed before that is the news
            while self._outstanding:
                self._wait()

    def _fail(self, error: TransferError) -> None:
        self._drain()
        raise error


def _transfers(code: CommandCode) -> bool:
    return code in (CommandCode.READ, CommandCode.WRITE)


def _array(data: bytes) -> Bytes:
    return np.frombuffer(data, np.uint8)


def _go_on(lane: Lane) -> None:
    """Reads may be sent again."""
    lane.blocked = lane.eof = False
    lane.skips = True


def _skip_bytes(drive: Drive, count: int) -> Steps[bool]:
    """Go forward on a random-access device, unless its volume ends before."""
    if drive.kind.removable:
        end = yield from drive.do(CommandCode.SET_POSITION, Whence.END)
        if drive.position + count > end.position:
            return False
    drive.position += count
    return True


def _skip_blocks(drive: Drive, count: int) -> Steps[bool]:
    """Go forward on a tape; where a filemark comes before, back again."""
    place = yield from drive.address()
    blocks = count // drive.block_size
    answer = yield from drive.do(CommandCode.SKIP_BLOCKS, blocks, allow=(MARK, CompletionCode.NO_DATA_DETECTED))
    if answer.code == CompletionCode.SUCCESS:
        return True
    yield from drive.do(CommandCode.SET_POSITION, 0, place or 0)
    return False
