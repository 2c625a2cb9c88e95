"""Before the data: media are read and checked, and brought to where a backup set goes or comes from (section 7).

Without FORMAT, a medium that can be positioned is not written to before its label and the end of its last set were
read. A pipe is only written to and read, so it has nothing to do here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from ..constants import CommandCode, CompletionCode, Whence
from ..mtf import (
    BlockSizeError,
    ContinuationError,
    FamilyInfo,
    FamilyReader,
    MtfError,
    NotMtfError,
    TruncatedError,
    blocks,
)
from ..mtf.volumes import block_at, filemarks_before, number_of_last_set
from .database import DatabaseError
from .steps import ENDS, MARK, Answer, Drive, Steps

_FAR = 0x7FFFFFFF  # filemarks: more than any medium holds
_LONGEST_END = 1 << 20  # bytes of what ends a set


class MediumRefused(DatabaseError):
    """A medium is not what the statement needs; nothing was written. Carries the message that SQL Server would give."""


@dataclass(frozen=True)
class Place:
    """Where a backup set goes on its medium.

    Parameters
    ----------
    start : int
        Bytes before it, in the stream of the medium.
    marks : tuple of int
        Places of the soft filemarks before it, newest first.
    number : int
        Of the set on the medium, from 1.
    address : int, optional
        Physical address as the device gave it.
    sequence : int
        Of the volume in its family, from 1.
    """

    start: int = 0
    marks: tuple[int, ...] = ()
    number: int = 1
    address: int | None = None
    sequence: int = 1


@dataclass(frozen=True)
class Label:
    """The label of a medium that was found there.

    Parameters
    ----------
    info : FamilyInfo
    size : int
        Bytes; the filemark behind it was read too.
    """

    info: FamilyInfo
    size: int

    @property
    def sequence(self) -> int:
        assert self.info.label is not None
        return self.info.label.sequence

    @property
    def name(self) -> str:
        assert self.info.label is not None
        return self.info.label.name


# ---- what is on the medium


def read_label(drive: Drive) -> Steps[Label | None]:
    """Read the label and the filemark behind it, from the beginning of the medium.

    Returns
    -------
    Label or None
        None: the medium is blank.

    Raises
    ------
    MtfError
        There is something else.
    """
    yield from drive.rewind()
    reader = FamilyReader(drive.block_size, _nothing, _nothing, keeps_marks=drive.kind.keeps_marks)
    size = 0
    while not reader.info.families:
        answer = yield from drive.read(drive.unit)
        if not answer.data and not size:
            return None
        reader.feed(memoryview(answer.data))
        size += answer.done
        if answer.code != CompletionCode.SUCCESS and not reader.info.families:
            raise TruncatedError("the medium ends within its label")
    if drive.kind.keeps_marks:
        yield from pass_mark(drive)
    else:
        with contextlib.suppress(ContinuationError):  # which volume it is, others ask
            reader.feed(memoryview((yield from drive.read(drive.block_size)).data))
        if not reader.at_set:
            raise TruncatedError("the medium ends within its label")
    return Label(reader.info, size)


def pass_mark(drive: Drive) -> Steps[None]:
    """Read the filemark that must be here and that the device keeps. Raises `MtfError`."""
    answer = yield from drive.read(drive.block_size)
    if answer.code != MARK or answer.data:
        raise MtfError("there is no filemark behind the label")


def _nothing(_: object) -> None:
    """What was read is looked at elsewhere."""


def refusal(error: MtfError, name: str) -> MediumRefused:
    """What SQL Server says of a medium that it was to write to."""
    if isinstance(error, BlockSizeError):
        return MediumRefused(3268, name, error.found, error.expected)
    if isinstance(error, NotMtfError):
        return MediumRefused(3242, name)
    return MediumRefused(3241, name)


# ---- where the next set goes


def examine(drive: Drive) -> Steps[Label | None]:
    """Validate a medium before it is written to. Raises `MediumRefused`."""
    try:
        return (yield from read_label(drive))
    except MtfError as error:
        raise refusal(error, drive.name) from None


def begin(drive: Drive, label: bytes) -> Steps[Place]:
    """Write the label of a new medium."""
    yield from drive.rewind()
    return (yield from _behind(drive, label))


def overwrite(drive: Drive, found: Label) -> Steps[Place]:
    """Keep the label, and go to where the first set is; right after `examine`."""
    if found.sequence != 1:
        raise MediumRefused(3247, drive.name, found.sequence, 1)
    if drive.kind.keeps_marks:
        return Place(found.size, (), 1, (yield from drive.address()))
    start = found.size + drive.block_size
    return Place(start, (found.size,), 1, (yield from _go_to(drive, start)))


def append(drive: Drive, found: Label) -> Steps[Place]:
    """Go behind the last set; right after `examine`. Raises `MediumRefused`."""
    try:
        return (yield from _append_to_tape(drive, found) if drive.kind.keeps_marks else _append_to_file(drive, found))
    except MtfError:
        raise MediumRefused(3266, drive.name) from None


def _behind(drive: Drive, label: bytes) -> Steps[Place]:
    yield from drive.write(label)
    if drive.kind.keeps_marks:
        yield from drive.write_mark()
        return Place(len(label), (), 1, (yield from drive.address()))
    yield from drive.write(blocks.filemark((), drive.block_size))
    return Place(drive.position, (len(label),), 1, (yield from drive.address()))


def _go_to(drive: Drive, place: int) -> Steps[int | None]:
    """To a byte of a random-access device; returns what the device says of it."""
    answer = yield from drive.do(CommandCode.SET_POSITION, Whence.BEGINNING, place)
    drive.position = place
    if answer.position != place:
        raise MtfError(f"the device went to byte {answer.position} instead of {place}")
    return (yield from drive.address())


def _append_to_file(drive: Drive, found: Label) -> Steps[Place]:
    if found.sequence != 1:
        # The filemarks there count from the beginning of another volume.
        raise MediumRefused(3246, drive.name)
    marks = yield from _all_filemarks(drive, found.size)
    for count, place in enumerate(marks):
        drive.position = place
        earlier = filemarks_before((yield from drive.read(drive.block_size)).data)
        if earlier != marks[:count][::-1][: blocks.filemark_capacity(drive.block_size)]:
            raise MtfError(f"the filemark at byte {place} does not name those before it")
    number = 0
    if len(marks) > 1:
        drive.position = marks[-2] + drive.block_size
        number = number_of_last_set((yield from drive.read(drive.unit)).data)
    if len(marks) != 2 * number + 1:
        raise MtfError(f"{len(marks)} filemarks do not belong to {number} sets")
    size = marks[-1] + drive.block_size
    address = yield from _go_to(drive, size)
    return Place(size, tuple(reversed(marks)), number + 1, address)


def _last_filemarks(drive: Drive) -> Steps[list[int]]:
    """Places of the filemarks of a random-access medium that the last one names, itself first."""
    size = (yield from drive.do(CommandCode.SET_POSITION, Whence.END)).position
    last = size - drive.block_size
    if last <= 0 or size % drive.block_size:
        raise MtfError("the medium does not end with a filemark")
    drive.position = last
    marks = [last, *filemarks_before((yield from drive.read(drive.block_size)).data)]
    if any(later <= earlier for later, earlier in zip(marks, marks[1:], strict=False)):
        raise MtfError("a filemark names places behind it")
    return marks


def _append_to_tape(drive: Drive, found: Label) -> Steps[Place]:
    start = yield from drive.address()
    while True:
        yield from drive.do(CommandCode.SKIP_MARKS, _FAR, allow=(CompletionCode.NO_DATA_DETECTED,))
        end = yield from drive.address()
        if end == start:
            return Place(found.size, (), 1, end, found.sequence)
        # Back before the mark in front of the last file, and across it again.
        for count in (-2, 1):
            yield from drive.do(CommandCode.SKIP_MARKS, count)
        last = yield from _last_block(drive)
        if last[:4] != b"EOTM":
            number = number_of_last_set(last)
            if (yield from drive.address()) != end:
                raise MtfError("something follows the last set that is none")
            return Place(found.size, (), number + 1, end, found.sequence)
        found = yield from next_volume(drive, found.info, found.sequence + 1)
        start = yield from drive.address()


def _last_block(drive: Drive) -> Steps[bytes]:
    """Read the file between the last two filemarks, and pass them: EOTM, or the two ESETs, of which it returns one.

    On a volume that continues just the end of a set, the repeated blocks precede what is left of them.
    """
    data: bytes = (yield from drive.read(drive.unit)).data
    if data[:4] != b"SSET" or not (block := block_at(data)) or not block.is_continuation:
        yield from drive.do(CommandCode.SKIP_MARKS, 1)
        return data
    code: int = CompletionCode.SUCCESS
    while code == CompletionCode.SUCCESS and len(data) < _LONGEST_END:
        answer = yield from drive.read(drive.unit)
        data, code = data + answer.data, answer.code
    return data[-drive.unit :]


def next_volume(drive: Drive, info: FamilyInfo, sequence: int) -> Steps[Label]:
    """Change to volume `sequence` of a family, and read its label. Raises `MediumRefused`, `MtfError`."""
    yield from drive.do(CommandCode.LOAD)
    found = yield from read_label(drive)
    if found is None or (found.info.media_guid, found.info.family) != (info.media_guid, info.family):
        raise MediumRefused(3258, drive.name)
    if found.sequence != sequence:
        raise MediumRefused(3247, drive.name, found.sequence, sequence)
    return found


# ---- where a set comes from


class Feed:
    """What takes the label while a restore positions: one device of a consumer.

    Parameters
    ----------
    accept, mark, end : callable
        See `Consumer`.
    info : callable
        What it knows so far.
    go_to : callable
        Called with the number of the set, its place and the filemarks before it.
    """

    def __init__(
        self,
        accept: Callable[[bytes], None],
        mark: Callable[[], None],
        info: Callable[[], FamilyInfo | None],
        go_to: Callable[[int, int, tuple[int, ...]], None],
    ) -> None:
        self.accept = accept
        self.mark = mark
        self.info = info
        self.go_to = go_to


def go_to_set(drive: Drive, file: int, feed: Feed) -> Steps[None]:
    """Position for reading set `file`; what was read on the way has been fed. Raises `MediumRefused`, `MtfError`."""
    yield from drive.rewind()
    if file == 1:
        return
    size = 0
    while (info := feed.info()) is None or not info.families:
        answer = yield from drive.read(drive.unit)
        if not answer.data:
            return  # the transfer finds the end again, and says what it means
        feed.accept(answer.data)
        size += answer.done
    if drive.kind.keeps_marks:
        yield from pass_mark(drive)
        feed.mark()
        # Behind the label each set has two: before its end, and behind it.
        if (yield from drive.skip_marks(2 * (file - 1))) and (yield from _is_set_here(drive, file)):
            feed.go_to(file, size, ())
        else:
            # It may be on another volume, as far as one of those before it goes on there: reading on finds it.
            yield from drive.rewind()
            yield from drive.skip_marks(1)
        return
    feed.accept((yield from drive.read(drive.block_size)).data)
    behind = drive.position
    try:
        marks = yield from _all_filemarks(drive, size)
    except MtfError:
        # Without a good end of the medium the sets are found by reading on.
        yield from _go_to(drive, behind)
        return
    if 2 * file > len(marks) - 1:
        raise MediumRefused(4038, file, drive.name)
    before = marks[: 2 * file - 1]
    place = before[-1] + drive.block_size
    yield from _go_to(drive, place)
    feed.go_to(file, place, tuple(reversed(before)))


def _is_set_here(drive: Drive, file: int) -> Steps[bool]:
    """Whether set `file` begins here; it is gone back to."""
    place, marks = (yield from drive.address()), drive.marks
    data = (yield from drive.read(drive.unit)).data
    if data[:4] != b"SSET" or len(data) < 64 or int.from_bytes(data[62:64], "little") != file:
        return False
    yield from drive.do(CommandCode.SET_POSITION, 0, place or 0)
    drive.marks = marks
    return True


def _all_filemarks(drive: Drive, first: int) -> Steps[list[int]]:
    """Places of all filemarks of a random-access medium, oldest first: that behind the label is at `first`."""
    marks = yield from _last_filemarks(drive)
    while marks[-1] > first:
        drive.position = marks[-1]
        answer: Answer = yield from drive.read(drive.block_size)
        earlier = filemarks_before(answer.data)
        if answer.code in ENDS or not earlier or earlier[0] >= marks[-1]:
            raise MtfError("a filemark does not name those before it")
        marks += earlier
    if marks[-1] != first or sorted(set(marks), reverse=True) != marks or marks[0] < 0:
        raise MtfError("the filemarks of the medium lead elsewhere")
    return marks[::-1]
