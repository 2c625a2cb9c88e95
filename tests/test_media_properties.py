"""Random legal command sequences, through both halves, on a reference medium and on a plain model of it.

The model is nothing but lists and the sentences of section 7: it shares no line with `media`. Some commands are sent
one by one and some in bursts, so that what fails finds others behind it: those never reach the medium (6.4).
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from media import MARK_SIZE, Cartridge, Disk, Medium, Pipe, Tape, Zone, answer
from server_pair import Pair, start

from vdi_ext import CommandCode, CompletionCode, Feature, VDIOError, Whence
from vdi_ext.server import Completion

C, E = CommandCode, CompletionCode
BLOCK = 512
MOST = 8  # blocks of one transfer
CAPACITY, WARNING = 24, 6  # blocks of a small medium


class Step(NamedTuple):
    """A command: blocks of a transfer or a count, a position, and what a write writes."""

    code: CommandCode
    size: int = 0
    position: int = 0
    fill: int = 0


class Expected(NamedTuple):
    code: CompletionCode
    count: int = 0
    position: int | None = None  # None: of no meaning
    data: bytes = b""


@dataclass
class Model:
    """A set of media as one list of cells each: a byte value per block, None for a filemark (tape only)."""

    mode: str
    small: bool  # media have an end
    media: list[list[int | None]] = field(default_factory=lambda: [[], [], []])
    number: int = 0
    place: int = 0
    written: int | None = None  # disk: the end of what was written to this medium

    @property
    def cells(self) -> list[int | None]:
        return self.media[self.number]

    def expect(self, step: Step) -> Expected:
        return getattr(self, f"_{step.code.name.lower()}")(step)

    def _room(self, at: int, count: int) -> tuple[int, CompletionCode]:
        """7.5: everything before the end is stored; within the warning zone the code says so."""
        if not self.small:
            return count, E.SUCCESS
        if at + count > CAPACITY:
            full = E.DISK_FULL if self.mode in ("pipe", "disk") else E.EOM_OVERFLOW
            return max(0, CAPACITY - at), full
        return count, E.END_OF_MEDIA if at + count > CAPACITY - WARNING else E.SUCCESS

    def _write(self, step: Step) -> Expected:
        at = step.position // BLOCK if self.mode.startswith("disk") else self.place
        if self.mode == "tape":
            del self.cells[at:]
        stored, code = self._room(at, step.size)
        self.cells.extend([0] * (at + stored - len(self.cells)) if stored else [])
        self.cells[at : at + stored] = [step.fill] * stored
        self.place = self.written = at + stored
        return Expected(code, stored * BLOCK)

    def _read(self, step: Step) -> Expected:
        at = step.position // BLOCK if self.mode.startswith("disk") else self.place
        rest = self.cells[at : at + step.size]
        code = E.SUCCESS if len(rest) == step.size else E.NO_DATA_DETECTED if self.mode == "tape" else E.HANDLE_EOF
        self.place = at + len(rest)
        if None in rest:
            rest = rest[: rest.index(None)]
            self.place = at + len(rest) + 1
            code = E.FILEMARK_DETECTED
        data = b"".join(bytes([cell or 0]) * BLOCK for cell in rest)
        return Expected(code, len(data), data=data)

    def _write_mark(self, step: Step) -> Expected:
        del self.cells[self.place :]
        stored, code = self._room(self.place, 1)
        self.cells.extend([None] * stored)
        self.place = len(self.cells)
        return Expected(code)

    def _skip(self, count: int, counts: tuple[bool, bool]) -> Expected:
        """`counts`: whether a block, whether a filemark counts; a filemark that does not count ends it."""
        step = 1 if count > 0 else -1
        while count:
            at = self.place if step > 0 else self.place - 1
            if not 0 <= at < len(self.cells):
                return Expected(E.NO_DATA_DETECTED if step > 0 else E.BEGINNING_OF_MEDIA)
            self.place += step
            mark = self.cells[at] is None
            if mark and not counts[1]:
                return Expected(E.FILEMARK_DETECTED)
            count -= step if counts[mark] else 0
        return Expected(E.SUCCESS)

    def _skip_marks(self, step: Step) -> Expected:
        return self._skip(step.size, (False, True))

    def _skip_blocks(self, step: Step) -> Expected:
        return self._skip(step.size, (True, False))

    def _rewind(self, step: Step) -> Expected:
        self.place = 0
        return Expected(E.SUCCESS)

    def _load(self, step: Step) -> Expected:
        if self.number + 1 == len(self.media):
            return Expected(E.NO_MEDIA_IN_DRIVE)
        self._cut()
        self.number, self.place, self.written = self.number + 1, 0, None
        return Expected(E.SUCCESS)

    def _get_position(self, step: Step) -> Expected:
        return Expected(E.SUCCESS, 0, self.place * (BLOCK if self.mode.startswith("disk") else 1))

    def _set_position(self, step: Step) -> Expected:
        if self.mode == "tape":
            self.place = min(step.position, len(self.cells))
            return Expected(E.SUCCESS if self.place == step.position else E.NO_DATA_DETECTED, 0, self.place)
        base = (0, self.place, len(self.cells))[step.size]
        place = base + step.position // BLOCK
        if place < 0:
            return Expected(E.BEGINNING_OF_MEDIA, 0, self.place * BLOCK)
        self.place = place
        return Expected(E.SUCCESS, 0, place * BLOCK)

    def _flush(self, step: Step) -> Expected:
        self._cut()
        return Expected(E.SUCCESS)

    def _cut(self) -> None:
        if self.mode.startswith("disk") and self.written is not None:
            self.cells.extend([0] * (self.written - len(self.cells)))
            del self.cells[self.written :]

    def _discard(self, step: Step) -> Expected:
        return Expected(E.SUCCESS)

    _complete = _clear_error = _discard


BLOCKS = st.integers(1, MOST)
FILL = st.integers(1, 255)
COUNT = st.integers(-3, 3)
PLACE = st.integers(0, 30)


def step(*parts: st.SearchStrategy) -> st.SearchStrategy[Step]:
    return st.tuples(*parts).map(lambda values: Step(*values))


def steps(mode: str) -> st.SearchStrategy[Step]:
    """What 7.3 lets a server send to this kind of device, with each input that 7.2 gives it.

    Without ClearError: within a burst, whether it comes before or after the error is a matter of time.
    """
    disk = mode.startswith("disk")
    at = PLACE.map(lambda n: n * BLOCK) if disk else st.just(0)
    found = [
        step(st.just(C.WRITE), BLOCKS, at, FILL),
        step(st.just(C.READ), BLOCKS, at),
        st.sampled_from([Step(C.FLUSH), Step(C.DISCARD), Step(C.COMPLETE)]),
    ]
    if mode == "tape":
        found += [
            step(st.sampled_from([C.SKIP_MARKS, C.SKIP_BLOCKS]), COUNT),
            st.sampled_from([Step(C.WRITE_MARK), Step(C.REWIND), Step(C.GET_POSITION)]),
            step(st.just(C.SET_POSITION), st.just(0), PLACE),
        ]
    if disk:
        offset = st.integers(-4, 20).map(lambda n: n * BLOCK)
        found += [
            step(st.just(C.SET_POSITION), st.sampled_from(Whence), offset),
            st.just(Step(C.GET_POSITION)),
        ]
    if mode == "tape" or "removable" in mode:
        found.append(st.just(Step(C.LOAD)))
    return st.one_of(found)


class MediaMachine(RuleBasedStateMachine):
    mode = ""

    @initialize(small=st.booleans())
    def begin(self, small: bool) -> None:
        self.folder = Path(tempfile.mkdtemp())
        count = 3 if self.mode == "tape" or "removable" in self.mode else 1
        paths = [self.folder / str(number) for number in range(count)]
        zones = [Zone(CAPACITY * BLOCK, WARNING * BLOCK) if small else Zone() for _ in paths]
        self.medium: Medium
        if self.mode == "tape":
            self.medium = Tape(list(map(Cartridge, paths, zones)), discard=True)
        else:
            self.medium = (Disk if self.mode.startswith("disk") else Pipe)(paths, zones, discard=True)
        self.model = Model(self.mode, small, [[] for _ in paths])
        self.pair = Pair(features=self.medium.features | Feature.REQUEST_COMPLETE)
        self.pair.configure(Feature.WRITE_MEDIA | Feature.COMPLETE_ENABLED, count=6).open_devices()
        self.buffers = [self.pair.buffer() for _ in range(6)]
        self.blocked = False
        self.thread = start(self.serve)

    def serve(self) -> None:
        for command in self.pair.reader:
            with command:
                answer(self.medium, command)

    @rule(data=st.data())
    def one(self, data: st.DataObject) -> None:
        self.run([data.draw(steps(self.mode))])

    @rule(data=st.data())
    def burst(self, data: st.DataObject) -> None:
        self.run(data.draw(st.lists(steps(self.mode), min_size=2, max_size=6)))

    def run(self, todo: list[Step]) -> None:
        sent = []
        for step, buffer in zip(todo, self.buffers, strict=False):
            transfer = step.code in (C.READ, C.WRITE)
            if transfer:
                with memoryview(buffer) as view:
                    view[:] = bytes([step.fill]) * len(view)
            try:
                future = self.pair.device.send_command(
                    step.code,
                    buffer if transfer else None,
                    size=step.size * BLOCK if transfer else step.size,
                    position=step.position % 2**64,
                )
            except VDIOError:
                future = None
            sent.append((step, buffer, future))
        for step, buffer, future in sent:
            completion = Completion(E.IO_DEVICE, 0, 0) if future is None else future.result(30)
            if self.blocked and step.code != C.CLEAR_ERROR:
                assert completion.code == E.IO_DEVICE
                continue
            expected = self.model.expect(step)
            assert completion.code == expected.code, step
            if step.code in (C.READ, C.WRITE):
                assert completion.bytes_transferred == expected.count, step
            if step.code == C.READ:
                with memoryview(buffer) as view:
                    assert view[: expected.count] == expected.data
                    assert view[expected.count :] == bytes(len(view) - expected.count), "behind what was read"
            if expected.position is not None:
                assert completion.position == expected.position, step
            self.blocked = completion.code != E.SUCCESS if step.code != C.CLEAR_ERROR else False

    @rule()
    def clear(self) -> None:
        self.run([Step(C.CLEAR_ERROR)])

    @invariant()
    def one_place(self) -> None:
        """The medium's own idea of where it is, while nothing is on its way to it."""
        place = self.medium.place  # type: ignore[attr-defined]
        assert place == self.model.place * (1 if self.mode == "tape" else BLOCK)

    def teardown(self) -> None:
        if not hasattr(self, "pair"):
            return
        try:
            self.pair.device.close_device()
            self.thread.outcome()
        finally:
            self.buffers.clear()
            self.pair.abort_and_close()
            self.medium.close()
            found = [self.content(number) for number in range(len(self.model.media))]
            shutil.rmtree(self.folder)
        assert found == self.model.media

    def content(self, number: int) -> list[int | None]:
        path = self.folder / str(number)
        if self.mode != "tape":
            data = path.read_bytes() if path.exists() else b""
            assert all(len(set(data[at : at + BLOCK])) == 1 for at in range(0, len(data), BLOCK))
            return list(data[::BLOCK])
        cartridge = Cartridge(path)
        cells: list[int | None] = []
        for piece in cartridge.files():
            cells += [*piece[::BLOCK], None]
        cartridge.close()
        return cells[:-1]


@pytest.mark.parametrize("mode", ["pipe", "pipe, removable", "tape", "disk", "disk, removable"])
def test_any_sequence_of_commands(mode: str) -> None:
    machine = type(f"Machine of {mode}", (MediaMachine,), {"mode": mode})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_filemark_takes_a_block_of_the_model() -> None:
    assert MARK_SIZE == BLOCK
