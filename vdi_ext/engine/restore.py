"""RESTORE: the families of a backup, checked against the state of the database and put into it."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from ..mtf import EXTENT_PAGES, PAGE_SIZE, Configuration, FamilyInfo, LogPart, Lsn, MtfError
from ..mtf.pages import Pages
from .backup import NO_LSN
from .catalog import ONLINE, RESTORING, Base, Entry, Fork, Redo
from .creation import Creation
from .database import DatabaseError, PageDamage, Target
from .failures import Failure, bare
from .families import Families
from .log import CHANGE, SECTOR, Record, decode, lsn_of, number_of
from .messages import message
from .msdb import RestoreRecord, lsn_number
from .outcome import Outcome, refuse_for_recovery, refuse_for_replay
from .replay import Replay, ReplayDifference
from .stripes import ReplayReturn, RestoreStripes
from .synthetic import Synthetic, SyntheticTarget

if TYPE_CHECKING:
    from .execution import Execution
    from .tsql import Statement

MOST_PAGES = 0xFFFFFFF8  # that 32 bits can number, in whole extents


def restore(execution: Execution) -> Outcome:
    """Execute a RESTORE DATABASE or RESTORE LOG. Raises `Failure`, `DatabaseError`."""
    name, entry = execution.name, execution.found
    if name.casefold() == "tempdb":
        raise DatabaseError(3147)
    if name.casefold() == "master":
        raise DatabaseError(3108)
    if entry is not None and isinstance(entry.database, Replay):
        return _take_files(execution, entry.database)
    if entry is not None:
        execution.claim()
    if not execution.statement.devices:
        return _recover(execution, entry)
    return _take_pages(execution, entry)


def _take_files(execution: Execution, database: Replay) -> Outcome:
    statement, devices = execution.statement, execution.devices
    refuse_for_replay(statement)
    target = database.target(statement.devices, replace=statement.replace)
    try:
        devices.read(ReplayReturn(target, devices.transfer_size))
        target.finish()
    except ReplayDifference as error:
        target.abandon()
        raise Failure(bare(error), message(3189)) from None
    except BaseException:
        target.abandon()
        raise
    return Outcome(-(-execution.moved // PAGE_SIZE), (), (NO_LSN, NO_LSN))


def _recover(execution: Execution, entry: Entry | None) -> Outcome:
    """RESTORE DATABASE ... WITH RECOVERY, of no backup."""
    refuse_for_recovery(execution.statement)
    if entry is None:
        raise DatabaseError(911, execution.name)
    with entry.lock:
        redo = entry.redo
        if redo is None:
            raise DatabaseError(3153)
        if execution.statement.norecovery:
            entry.state, entry.standby = RESTORING, None
        elif execution.statement.standby is not None:
            entry.state, entry.standby = ONLINE, execution.statement.standby
        else:
            entry.recover()
    return Outcome(0, (), (lsn_of(redo.number), lsn_of(redo.number)))


def _take_pages(execution: Execution, entry: Entry | None) -> Outcome:
    statement, devices = execution.statement, execution.devices
    plan = _Plan(execution, entry)
    try:
        devices.read(RestoreStripes(
            len(statement.devices), devices.block_size, plan.family, plan.accept, plan.log, plan.end,
            statement.file or 1,
        ))  # fmt: skip
        plan.finish()
    except BaseException as error:
        plan.abandon()
        if isinstance(error, PageDamage):
            raise execution.explainer.damage(error) from None
        raise
    return plan.outcome()


class _Plan:
    """What a restore learns from the first family, and what it does to the database."""

    def __init__(self, execution: Execution, entry: Entry | None) -> None:
        self._execution = execution
        self._entry = entry
        self._statement = execution.statement
        self._families = Families(execution.statement)
        self._creation: Creation | None = None
        self._target: Target | None = None
        self._records: list[Record] = []
        self._sequence = 0  # number that the next log record must have
        self._info: FamilyInfo | None = None
        self._redo: Redo | None = None  # what the database is rolled forward to by this
        self._reached = True  # the point in time, where there is one

    # ---- beginning

    def family(self, number: int, info: FamilyInfo) -> None:
        if self._families.admit(number, info):
            self._begin(info)

    def _begin(self, info: FamilyInfo) -> None:
        statement, configuration = self._statement, info.configuration
        assert configuration is not None
        if info.snapshot:
            raise DatabaseError(3135, statement.devices[0], "BACKUP DATABASE WITH SNAPSHOT")
        if statement.checksum and not info.checksum:
            raise DatabaseError(3187)
        if (configuration.kind == "L") != (statement.kind == "LOG"):
            made = "BACKUP LOG" if configuration.kind == "L" else "BACKUP DATABASE"
            raise DatabaseError(3135, statement.devices[0], made)
        self._info = info
        if configuration.kind == "D":
            self._begin_full(info, configuration)
        else:
            self._begin_more(info, configuration)

    def _begin_full(self, info: FamilyInfo, found: Configuration) -> None:
        stop = self._statement.stop_at
        if stop is not None:
            if found.extra.get("recovery_model") == "SIMPLE":
                raise DatabaseError(3145)
            if found.started is not None and found.started > stop.replace(microsecond=0):
                raise DatabaseError(4338)
        self._pages(info)
        self._creation = Creation(self._execution, self._entry, info)
        self._target = self._creation.target()
        self._redo = redo_of_full(info, found)

    def _begin_more(self, info: FamilyInfo, found: Configuration) -> None:
        """A differential or a log: only on a database that is being restored, and only where it fits."""
        entry = self._entry
        if entry is None:
            raise DatabaseError(3118, self._execution.name)
        redo = entry.redo
        if redo is None:
            raise DatabaseError(3117)
        if found.family_guid != entry.family_guid:
            raise DatabaseError(3154, entry.name)
        if entry.versions is None:
            raise MtfError("a log or differential backup of a database that has neither")
        last = _number(found.last_lsn)
        if found.kind == "L":
            self._begin_log(redo, found, last)
            return
        self._pages(info)
        if redo.base is None or redo.base.guid != found.base_guid or redo.base.number != _number(found.base_lsn):
            raise DatabaseError(3136)
        if last < redo.number:
            raise DatabaseError(3120)
        if self._statement.stop_at is not None and found.started and found.started > self._statement.stop_at:
            raise DatabaseError(4338)
        assert isinstance(entry.database, Synthetic)  # others have no versions
        self._target = entry.database.target(
            entry.name, len(entry.versions) * EXTENT_PAGES, replace=True, versions=entry.versions, count=info.pages
        )
        self._redo = Redo(last, found.started or redo.time, redo.base, _forks(found))

    def _begin_log(self, redo: Redo, found: Configuration, last: int) -> None:
        first = _number(found.first_lsn)
        if first > redo.number:
            raise DatabaseError(4305, _printed(first), _printed(redo.number))
        if last < redo.number:
            raise DatabaseError(4326, _printed(last), _printed(redo.number))
        forks = _forks(found)
        if not _continues(redo, forks, last):
            raise DatabaseError(4330)
        stop = self._statement.stop_at
        if stop is not None and stop < redo.time.replace(microsecond=0):
            raise DatabaseError(4335)
        self._sequence = first
        self._redo = Redo(last, redo.time, redo.base, forks)

    def _pages(self, info: FamilyInfo) -> None:
        if not 0 < info.pages <= MOST_PAGES or info.pages % EXTENT_PAGES:
            raise MtfError(f"the backup announces {info.pages} pages, which are no whole extents or too many")
        self._execution.expect(info.pages * PAGE_SIZE)

    # ---- data

    def accept(self, pages: Pages) -> None:
        if self._target is None:
            raise MtfError("pages in a backup that announced none")
        self._target.accept(pages)

    def log(self, part: LogPart, data: Pages) -> None:
        """Records come without gaps; those of a data backup mean nothing."""
        if self._sequence:
            left = (part.end - part.start) // SECTOR - (self._sequence - self._first_of(part))
            used = max(0, min(data.nbytes, left * SECTOR))
            for record in decode(memoryview(data.reshape(-1))[:used]):
                if record.number != self._sequence:
                    raise MtfError(f"log record {record.number} instead of {self._sequence}")
                self._sequence += 1
                self._records.append(record)

    def _first_of(self, part: LogPart) -> int:
        return _number((part.sequence, (part.start - part.offset) // SECTOR, 1))

    def end(self, info: FamilyInfo) -> None:
        """A family was read whole."""
        found, stop = info.configuration, self._statement.stop_at
        assert found is not None
        if stop is not None and found.kind != "L":
            if found.finished and found.finished > stop:
                raise DatabaseError(4338)
            self._reached = found.finished == stop

    # ---- success

    def finish(self) -> None:
        if self._target is not None:
            self._target.finish()
        redo, info = self._redo, self._info
        assert redo is not None and info is not None and info.configuration is not None
        if info.configuration.kind == "L":
            self._roll_forward(redo, info.configuration)
        elif self._creation is not None:
            made = self._target.versions if isinstance(self._target, SyntheticTarget) else None
            self._entry = self._creation.finish(made)
            settle(self._entry, self._statement, redo, self._reached)
        else:
            assert self._entry is not None and isinstance(self._target, SyntheticTarget)
            with self._entry.lock:
                self._entry.versions = self._target.versions
                settle(self._entry, self._statement, redo, self._reached)

    def _roll_forward(self, redo: Redo, found: Configuration) -> None:
        entry, stop = self._entry, self._statement.stop_at
        assert entry is not None and entry.redo is not None and entry.versions is not None
        if self._sequence != redo.number:
            raise MtfError(f"the log ends before record {redo.number}")
        versions = entry.versions.copy()
        number, time = redo.number, max([entry.redo.time, *(record.time for record in self._records)])
        for record in self._records:
            if stop is not None and record.time > stop:
                number, time = record.number, stop
                break
            if record.number >= entry.redo.number and record.kind == CHANGE:
                if not 0 < record.first + record.count <= len(versions):
                    raise MtfError("a log record changes what there is not")
                versions[record.first : record.first + record.count] = record.number
        else:
            self._reached = stop is None or (found.started is not None and found.started >= stop)
        number = max(number, entry.redo.number)
        forks = tuple(fork for fork in redo.forks if fork.start <= number)
        with entry.lock:
            entry.versions = versions
            settle(entry, self._statement, Redo(number, time, redo.base, forks or redo.forks[:1]), self._reached)

    def abandon(self) -> None:
        if self._target is not None:
            self._target.abandon()

    def outcome(self) -> Outcome:
        info, execution = self._info, self._execution
        assert info is not None and info.configuration is not None
        found = info.configuration
        if not self._reached:
            execution.tell(message(4322))
        remember(execution, info, recovered=self._reached)
        pages, files = info.pages, tuple((name, count) for _, name, count in info.files)
        if found.kind == "L":
            pages = -(-sum(file.backup_size for file in found.files if not file.group_id) // PAGE_SIZE)
            files = tuple((file.name, 0 if file.group_id else pages) for file in found.files)
        return Outcome(pages, files, (found.first_lsn, found.last_lsn), info.number, found.kind)


def _printed(number: int) -> str:
    """A log sequence number as messages have it."""
    return str(lsn_number(lsn_of(number)))


def _continues(redo: Redo, forks: tuple[Fork, ...], last: int) -> bool:
    """Whether log of these forks goes on where the database was rolled forward to."""
    ends = [*(fork.start for fork in forks[1:]), last]
    current = redo.forks[-1].guid
    return any(
        fork.guid == current and fork.start <= redo.number <= end for fork, end in zip(forks, ends, strict=True)
    )


# ---- what restores of snapshots do as well


def redo_of_full(info: FamilyInfo, found: Configuration) -> Redo:
    """Where a full backup leaves the database. A copy-only one as well: it is what there is to build on."""
    base = Base(_number(found.first_lsn), info.set_guid)
    return Redo(_number(found.last_lsn), found.started or datetime.min, base, _forks(found))


def settle(entry: Entry, statement: Statement, redo: Redo, reached: bool = True) -> None:
    """Leave a database that was rolled forward in the state that was asked for."""
    with entry.lock:
        entry.redo, entry.forks, entry.base, entry.chain = redo, redo.forks, redo.base, None
        entry.state, entry.standby = RESTORING, None
        if not reached:
            return
        if statement.standby is not None:
            entry.state, entry.standby = ONLINE, statement.standby
        elif not statement.norecovery:
            entry.recover()


def remember(execution: Execution, info: FamilyInfo, *, recovered: bool = True) -> None:
    """Put the restore into msdb."""
    statement, found = execution.statement, info.configuration
    assert found is not None
    execution.remember(RestoreRecord(
        database=execution.name, type=found.kind, finished=datetime.now(), set_guid=uuid.UUID(bytes_le=info.set_guid),
        replace=statement.replace, recovery=recovered and not statement.norecovery and statement.standby is None,
        stop_at=statement.stop_at,
    ))  # fmt: skip


def _number(lsn: Lsn) -> int:
    try:
        return number_of(lsn)
    except ValueError as error:
        raise MtfError(str(error)) from error


def _forks(found: Configuration) -> tuple[Fork, ...]:
    try:
        forks = tuple(Fork(bytes.fromhex(guid), int(start)) for guid, start in found.extra["forks"])  # type: ignore[attr-defined]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MtfError("the backup names no recovery path") from error
    if not forks or any(len(fork.guid) != 16 for fork in forks):
        raise MtfError("the backup names no recovery path")
    return forks
