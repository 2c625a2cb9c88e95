"""The media of a backup: what the statement makes of what is found on them, and whether they belong together."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from ..mtf import MediaSet
from ..mtf.writer import label
from .positioning import Label, MediumRefused, Place, append, begin, examine, overwrite
from .steps import Drive, Kind, Steps
from .transfer import Transfer
from .tsql import Statement


@dataclass(frozen=True)
class Mounted:
    """Media that are ready to be written to.

    Parameters
    ----------
    media : MediaSet
        New, or the one that is appended to.
    families : tuple of int
        Which family each device holds, from 1.
    places : tuple of Place
        Where the backup set goes on each.
    """

    media: MediaSet
    families: tuple[int, ...]
    places: tuple[Place, ...]

    @property
    def number(self) -> int:
        """Of the backup set on the media, from 1."""
        return self.places[0].number


def mount(
    transfer: Transfer, statement: Statement, kind: Kind, block_size: int, soft_filemarks: int
) -> Mounted:
    """Validate the media of the devices and bring each to where the backup set goes.

    Parameters
    ----------
    transfer : Transfer
    statement : Statement
        FORMAT: whatever the media hold is overwritten. INIT: their labels are kept. Neither: their backup sets too.
    kind : Kind
    block_size : int
        Bytes.
    soft_filemarks : int
        What the label says of filemarks on devices that keep them themselves, bytes.

    Raises
    ------
    MediumRefused, TransferError
    """
    count = len(statement.devices)
    number = uuid.uuid4()
    new = MediaSet(
        number.bytes_le, count, block_size, number.time_low, statement.media_name or "",
        statement.media_description or "", soft_filemarks if kind.keeps_marks else None,
    )  # fmt: skip
    fresh = Mounted(new, tuple(range(1, count + 1)), (Place(),) * count)
    if not kind.positions:
        return fresh
    found: list[Label | None] = [None] * count
    if not statement.format:
        found = transfer.run(lambda number, drive: examine(drive))
    labels = [one for one in found if one is not None]
    if not labels:
        now = datetime.now()

        def write(number: int, drive: Drive) -> Steps[Place]:
            return begin(drive, label(new, number + 1, now))

        return _placed(transfer, replace(fresh, places=tuple(transfer.run(write))))
    if len(labels) < count:
        raise MediumRefused(3258, statement.devices[found.index(None)])
    _check(statement, labels)
    go = overwrite if statement.init else append
    places = transfer.run(lambda number, drive: go(drive, labels[number]))
    for name, place in zip(statement.devices, places, strict=True):
        if place.number != places[0].number:
            raise MediumRefused(3258, name)
    info, first = labels[0].info, labels[0].info.label
    assert first is not None
    media = replace(
        new, guid=info.media_guid, family_id=first.family_id, name=first.name, description=first.description
    )
    return _placed(transfer, Mounted(media, tuple(one.info.family for one in labels), tuple(places)))


def _placed(transfer: Transfer, mounted: Mounted) -> Mounted:
    transfer.place(mounted.places)
    return mounted


def _check(statement: Statement, labels: Sequence[Label]) -> None:
    """Whether they are the media set that the statement means, all of it."""
    count, seen = len(statement.devices), dict[int, str]()
    for name, found in zip(statement.devices, labels, strict=True):
        info = found.info
        if info.families != count:
            raise MediumRefused(3231, name, info.families, count)
        if info.media_guid != labels[0].info.media_guid:
            raise MediumRefused(3258, name)
        if info.family in seen:
            raise MediumRefused(3227, name, info.family, seen[info.family])
        seen[info.family] = name
        if statement.media_name is not None and not statement.skip and statement.media_name != found.name:
            raise MediumRefused(4037, statement.media_name, found.name, name)
