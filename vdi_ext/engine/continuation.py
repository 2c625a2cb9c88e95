"""A backup set that does not fit on its medium: the end of one volume and the beginning of the next (section 7.5).

As Microsoft Tape Format has it, a cartridge ends with a filemark, EOTM and a filemark, and the next one begins with a
label that counts the volumes, a filemark, and SSET and VOLB again, marked as continuations. On media without filemarks
of their own, where a volume ends is the end of its data. How SQL Server continues its own blocks is not published: here
the stream goes on with the byte where it stopped, behind the repeated blocks.
"""

from __future__ import annotations

from collections.abc import Callable

from ..constants import CommandCode, CompletionCode
from ..mtf import FamilyInfo, MtfError, blocks
from ..mtf.volumes import Block, block_at
from .lane import Lane, Spanning
from .positioning import MediumRefused, begin, next_volume, read_label
from .steps import Drive, Steps


def store_rest(lane: Lane, store: Callable[[int], None]) -> Steps[None]:
    """Store what the medium still has to take after it warned.

    Parameters
    ----------
    lane : Lane
        Nothing of it is outstanding.
    store : callable
        Called with the bytes of each write that is stored.
    """
    drive = lane.drive
    yield from drive.clear()
    while lane.left:
        slot = lane.left[0]
        if slot.code == CommandCode.WRITE_MARK:
            yield from drive.write_mark()
        else:
            size = slot.size
            yield from drive.write(slot=slot)
            store(size)
        lane.left.popleft()


def change_for_writing(
    lane: Lane, streams: Spanning, may_overwrite: bool, store: Callable[[int], None]
) -> Steps[None]:
    """Store what the full volume still has to take, end it, and begin the next one.

    Parameters
    ----------
    lane, store
        See `store_rest`.
    streams : Spanning
    may_overwrite : bool
        The next medium may hold something else.

    Raises
    ------
    MediumRefused
    """
    drive = lane.drive
    yield from store_rest(lane, store)
    if drive.kind.keeps_marks:
        yield from drive.write_mark()
        yield from drive.write(blocks.padded(blocks.end_of_tape(), (), drive.unit))
        yield from drive.write_mark()
    # Nothing of it must be lost when the medium is taken out; on a random-access one it also ends the file.
    yield from drive.do(CommandCode.FLUSH)
    yield from drive.do(CommandCode.LOAD)
    lane.sequence += 1
    label = streams.label(lane.number, lane.sequence)
    if drive.kind.positions:
        yield from _check_blank(lane, streams, may_overwrite)
    place = yield from begin(drive, label)
    yield from drive.write(streams.continuation(lane.number, lane.place, place.address or place.start))


def _check_blank(lane: Lane, streams: Spanning, may_overwrite: bool) -> Steps[None]:
    """Refuse a medium whose content is still wanted."""
    drive = lane.drive
    try:
        found = yield from read_label(drive)
    except MtfError:
        if not may_overwrite:
            raise MediumRefused(3258, drive.name) from None
        return
    if found is None:
        return
    if found.info.media_guid == streams.media.guid:
        family = streams.family(lane.number)
        raise MediumRefused(3263, drive.name, found.sequence, found.info.family, lane.sequence, family)
    if not may_overwrite:
        raise MediumRefused(3258, drive.name)


def is_next_volume_wanted(drive: Drive) -> Steps[bool]:
    """Behind a filemark: whether the cartridge ends here in the middle of a set. If not, nothing has moved."""
    if not drive.kind.removable:
        return False
    place, marks = (yield from drive.address()), drive.marks
    answer = yield from drive.read(drive.unit)
    if answer.data[:4] == b"EOTM" and block_at(answer.data) is not None:
        return True
    if answer.data or answer.code not in (CompletionCode.NO_DATA_DETECTED, CompletionCode.HANDLE_EOF):
        yield from drive.do(CommandCode.SET_POSITION, 0, place or 0)
        drive.marks = marks
    return False


def change_for_reading(lane: Lane, info: FamilyInfo) -> Steps[None]:
    """Change to the volume on which the set goes on, up to the byte where it does.

    Raises
    ------
    MediumRefused, MtfError
        It is not that volume.
    """
    drive = lane.drive
    yield from next_volume(drive, info, lane.sequence + 1)
    lane.sequence += 1
    data = b""
    size = 0
    for kind in (b"SSET", b"VOLB"):
        while (block := block_at(data, size)) is None:
            answer = yield from drive.read(drive.unit if not data else drive.block_size)
            if not answer.data:
                raise MtfError("the volume ends before the set goes on")
            data += answer.data
        _require_continuation(block, kind)
        size += block.size


def _require_continuation(block: Block, kind: bytes) -> None:
    if block.kind != kind or not block.is_continuation:
        raise MtfError(f"{block.kind!r} instead of the continued {kind!r}")
