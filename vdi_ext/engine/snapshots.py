"""BACKUP and RESTORE WITH SNAPSHOT: the stream holds what describes the database, the client copies the files.

    backup   Write ...  [PrepareToFreeze]  freeze  Write ...  Snapshot  thaw       (section 11.2)
    restore  Read ...  MountSnapshot  look at the files                             (section 11.3)

Before the freeze goes what describes the medium, behind it the backup set with the first extent of the frozen files.
However the statement ends, the database is thawed before its devices are closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from ..constants import CommandCode
from ..errors import VDAbortError
from ..mtf import EXTENT_PAGES, FamilyInfo, FamilyWriter, MtfError, sector_xors
from ..mtf.pages import Pages
from .backup import Backup, allow
from .catalog import Redo
from .creation import Creation
from .database import DatabaseError
from .freezing import Frozen, Mount, freeze, mount
from .messages import message
from .outcome import Outcome
from .replay import Replay
from .restore import MOST_PAGES, redo_of_full, remember, settle
from .stripes import Bytes, Metadata, RestoreStripes
from .transfer import SMALL_BUFFER, Transfer

if TYPE_CHECKING:
    from .execution import Execution


class _Pieces:
    """Bytes for one device, in pieces that fit the small buffers."""

    def __init__(self, *data: bytes) -> None:
        whole = b"".join(data)
        self._items = deque(Metadata(whole[at : at + SMALL_BUFFER]) for at in range(0, len(whole), SMALL_BUFFER))

    def next(self, number: int) -> Metadata | None:
        return self._items.popleft() if self._items else None

    def make(self, number: int, item: Metadata, data: Bytes) -> None:
        data[:] = np.frombuffer(item.data, np.uint8)


def back_up_snapshot(execution: Execution) -> Outcome:
    """Execute a BACKUP DATABASE WITH SNAPSHOT. Raises `Failure`, `DatabaseError`."""
    _refuse(execution)
    allow(execution.entry, execution.statement)
    execution.database.check(execution.name)
    backup = _SnapshotBackup(execution)
    execution.devices.move(backup.run, writing=True)
    return backup.outcome()


class _SnapshotBackup:
    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._backup = Backup(execution)
        self._name = execution.name
        self._device = execution.statement.devices[0]

    def run(self, transfer: Transfer) -> None:
        execution = self._execution
        writer = FamilyWriter(self._backup.media, self._backup.describe(0, 0), 1, 1)
        prepare = (CommandCode.PREPARE_TO_FREEZE,) if execution.devices.prepares_to_freeze else ()
        transfer.write(_Pieces(writer.medium()), prepare)
        with self._frozen() as frozen:
            # Changes come to an end before what of the log belongs to it is fixed.
            self._backup.begin()
            backup = self._backup.describe(frozen.pages, frozen.pages)
            extra = {**backup.extra, "changed": frozen.state}
            writer.backup = dataclasses.replace(backup, snapshot=True, extra=extra)
            begin, extent = writer.begin(), frozen.extent()
            writer.pages(EXTENT_PAGES, sector_xors(extent) if backup.checksum else None)
            stream = _Pieces(begin, extent.tobytes(), writer.end(datetime.now()))
            transfer.write(stream, (CommandCode.SNAPSHOT,))
        self._set = writer.backup

    def outcome(self) -> Outcome:
        """The statement succeeded."""
        return self._backup.succeed(self._set)

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[Frozen]:
        """The frozen database. Raises `DatabaseError` at the end where it did not stay frozen."""
        execution = self._execution
        devices, log = execution.devices, execution.engine.to_log
        frozen = freeze(execution.entry, devices.check, lambda: devices.abort("the database is frozen no longer"))
        try:
            log(message(3197, self._name))
            try:
                yield frozen
            except VDAbortError:
                if not frozen.thaw():  # which then was the reason
                    raise DatabaseError(3229, self._device) from None
                raise
            if not frozen.thaw():
                raise DatabaseError(3229, self._device)
        finally:
            frozen.thaw()
            log(message(3198, self._name))


def restore_snapshot(execution: Execution) -> Outcome:
    """Execute a RESTORE DATABASE WITH SNAPSHOT. Raises `Failure`, `DatabaseError`."""
    if execution.name.casefold() == "master":
        raise DatabaseError(3196)
    if execution.name.casefold() == "tempdb":
        raise DatabaseError(3147)
    if execution.found is not None:
        execution.claim()
    _refuse(execution)
    plan = _SnapshotRestore(execution)
    stripes = RestoreStripes(1, execution.devices.block_size, plan.begin, plan.accept)

    def act(transfer: Transfer) -> None:
        transfer.read(stripes)
        plan.open()
        transfer.write(_Pieces(), (CommandCode.MOUNT_SNAPSHOT,))
        plan.finish()

    try:
        execution.devices.move(act, stripes, writing=False)
    finally:
        plan.abandon()
    return plan.succeed()


class _SnapshotRestore:
    outcome: Outcome
    _info: FamilyInfo
    _redo: Redo
    _creation: Creation

    def __init__(self, execution: Execution) -> None:
        self._execution = execution
        self._mount: Mount | None = None

    def begin(self, number: int, info: FamilyInfo) -> None:
        execution, statement = self._execution, self._execution.statement
        if info.families != 1:
            raise DatabaseError(3132, info.families, 1)
        if not info.snapshot:
            raise DatabaseError(3135, 1, "BACKUP DATABASE")
        if statement.checksum and not info.checksum:
            raise DatabaseError(3187)
        if not 0 < info.pages <= MOST_PAGES or info.pages % EXTENT_PAGES:
            raise MtfError(f"the backup announces {info.pages} pages, which are no whole extents or too many")
        files = tuple((name, pages) for _, name, pages in info.files)
        assert info.configuration is not None
        found = info.configuration
        self._info, self._redo = info, redo_of_full(info, found)
        self.outcome = Outcome(info.pages, files, (found.first_lsn, found.last_lsn), info.number)
        self._creation = made = Creation(execution, execution.found, info)
        changed = found.extra.get("changed")
        self._mount = mount(made.database, execution.name, info.pages, changed, replace=made.replaces)

    @property
    def mount(self) -> Mount:
        assert self._mount is not None  # the stream has begun
        return self._mount

    def accept(self, pages: Pages) -> None:
        self.mount.accept(pages)

    def open(self) -> None:
        self.mount.open()

    def finish(self) -> None:
        self.mount.finish()

    def succeed(self) -> Outcome:
        """The statement succeeded."""
        execution = self._execution
        settle(self._creation.finish(self.mount.versions), execution.statement, self._redo)
        remember(execution, self._info)
        return self.outcome

    def abandon(self) -> None:
        if self._mount is not None:
            self._mount.abandon()


def _refuse(execution: Execution) -> None:
    """Raise where a snapshot over these devices cannot be."""
    if len(execution.statement.devices) > 1:
        raise DatabaseError(3205, 1)
    if execution.found is not None and isinstance(execution.found.database, Replay):  # its files are those of a backup
        raise DatabaseError(3032, "snapshot")
