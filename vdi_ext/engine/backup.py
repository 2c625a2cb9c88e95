"""BACKUP: what is to be sent, described and dealt to the devices, and what its success means for the database."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ..mtf import EXTENT_PAGES, PAGE_SIZE, BackupSet, DatabaseFile, Lsn, MediaSet
from ..mtf.blocks import DATABASE_VERSION
from .catalog import ONLINE, RESTORING, Base, Entry, Redo, path_through
from .database import DatabaseError, PagedDatabase, Snapshot
from .log import CHECKPOINT, encode, lsn_of
from .msdb import BackupRecord, FileRecord
from .outcome import Outcome, refuse_for_replay
from .replay import Replay
from .sqlite import Sqlite
from .stripes import BackupStripes, NoPages, ReplayStreams
from .synthetic import Synthetic
from .transfer import SMALL_BUFFER

if TYPE_CHECKING:
    from .execution import Execution
    from .tsql import Statement

NO_LSN: Lsn = (0, 0, 0)


def back_up(execution: Execution) -> Outcome:
    """Execute a BACKUP. Raises `Failure`, `DatabaseError`."""
    entry, statement = execution.entry, execution.statement
    allow(entry, statement)
    database = entry.database
    database.check(entry.name)
    if isinstance(database, Replay):
        return _send_files(execution, database)
    if statement.norecovery or statement.standby is not None:
        execution.claim()
    return _PagesBackup(execution).run()


def allow(entry: Entry, statement: Statement) -> None:
    """Refuse what the state of the database does not allow. Raises `DatabaseError`."""
    name, log = entry.name.casefold(), statement.kind == "LOG"
    if name == "tempdb":
        raise DatabaseError(3147)
    if name == "master" and (log or statement.differential):
        raise DatabaseError(4212 if log else 3024)
    if name == "model" and log and statement.norecovery:
        raise DatabaseError(4220)
    with entry.lock:
        if entry.standby is not None:
            raise DatabaseError(3036, entry.name)
        if entry.state == RESTORING:
            raise DatabaseError(927, entry.name)
        if isinstance(entry.database, Replay):
            return
        if log and entry.recovery_model == "SIMPLE":
            raise DatabaseError(4208, statement.operation)
        if log and entry.chain is None:
            raise DatabaseError(4214)
        if statement.differential:
            if entry.versions is None:  # nothing notes which pages of it change
                raise DatabaseError(3032, "differential")
            if entry.base is None:
                raise DatabaseError(3035, entry.name)


def _send_files(execution: Execution, database: Replay) -> Outcome:
    statement, devices = execution.statement, execution.devices
    refuse_for_replay(statement)
    with contextlib.closing(database.source(statement.devices, devices.block_size)) as source:
        total = sum(source.sizes)
        execution.expect(total)
        devices.write(lambda: ReplayStreams(source, devices.transfer_size), raw=True)
    return Outcome(-(-total // PAGE_SIZE), (), (NO_LSN, NO_LSN))


@dataclass(frozen=True)
class _Range:
    """What of the log belongs to a backup: numbers of records, `last` behind them."""

    first: int
    last: int


class Backup:
    """What a BACKUP says of itself, and what its success means. Raises `DatabaseError` where the state forbids it."""

    def __init__(self, execution: Execution) -> None:
        entry, statement = execution.entry, execution.statement
        if isinstance(entry.database, Replay):
            raise TypeError("a replay says nothing of itself")
        self._execution = execution
        self._entry = entry
        self._database: PagedDatabase = entry.database
        self._statement = statement
        self._kind = "L" if statement.kind == "LOG" else "I" if statement.differential else "D"
        self._copy_only = statement.copy_only or statement.no_truncate
        self._tail = statement.norecovery or statement.standby is not None
        self._range = _Range(1, 1)
        self._number = 1  # of the set on its media
        number = uuid.uuid4()
        self.media = MediaSet(
            number.bytes_le, len(statement.devices), execution.devices.block_size, number.time_low,
            statement.media_name or "", statement.media_description or "",
        )  # fmt: skip

    def begin(self) -> None:
        """Fix what of the log belongs to it; a data backup begins with a checkpoint."""
        entry = self._entry
        with entry.lock:
            if self._kind == "L":
                if entry.chain is None or entry.state == RESTORING:  # since the statement began
                    allow(entry, self._statement)
                assert entry.chain is not None
                self._range = _Range(entry.chain, entry.log.next)
                if self._tail:  # nothing may be logged behind the tail
                    entry.state = RESTORING
                return
            record = entry.log.append(CHECKPOINT, datetime.now())
            if entry.recovery_model == "SIMPLE":
                entry.log.truncate(entry.log.next)
            self._range = _Range(record.number, entry.log.next)

    def files(self, whole: int, pages: int) -> tuple[DatabaseFile, ...]:
        """The files of the database: pages of the data file, and those of them that are in the backup."""
        entry = self._entry
        return tuple(
            replace(
                file,
                path=entry.path(file.name, file.path),
                pages=0 if file.is_log else pages,
                size=entry.log.size if file.is_log else file.size,
                guid=uuid.uuid5(uuid.UUID(bytes_le=entry.family_guid), str(file.file_id)).bytes_le,
            )
            for file in self._database.files(entry.logical_name, whole)
        )

    def describe(self, whole: int, pages: int) -> BackupSet:
        """The backup set; parameters as for `files`. Call `begin` before."""
        entry, statement, kind = self._entry, self._statement, self._kind
        first, last = self._range.first, self._range.last
        with entry.lock:
            base, forks = entry.base, path_through(entry.forks, first, last)
            records = entry.log.between(first, last) if kind == "L" else []
            begins = kind == "L" and entry.begins_chain
            model = entry.recovery_model
        extra: dict[str, object] = {
            **_kind_of(self._database), "recovery_model": model, "begins_chain": begins,
            "forks": [[fork.guid.hex(), fork.start] for fork in forks],
        }  # fmt: skip
        if self._expires is not None:
            extra["expires"] = self._expires.isoformat()
        checkpoint = base.number if kind == "L" and base is not None else first
        base_lsn = lsn_of(base.number) if base is not None else NO_LSN
        base_guid = base.guid if base is not None else bytes(16)
        return BackupSet(
            uuid.uuid4().bytes_le, entry.name, self._execution.engine.server_name, socket.gethostname(), self._user,
            self.files(whole, pages), entry.created, datetime.now(), bool(statement.checksum), forks[-1].guid,
            lsn_of(first), lsn_of(last), kind, lsn_of(checkpoint), base_lsn, base_guid,
            base_lsn if kind == "I" else NO_LSN, base_guid if kind == "I" else bytes(16),
            entry.family_guid, entry.binding_guid, statement.name or "", statement.description or "",
            self._number, encode(records, last) if kind == "L" else (), extra, copy_only=self._copy_only,
            tail=self._tail, norecovery=statement.norecovery,
        )  # fmt: skip

    @property
    def _user(self) -> str:
        """Whose statement it is."""
        session = self._execution.session
        return session.login if session is not None else _process_user()

    @property
    def _expires(self) -> datetime | None:
        statement = self._statement
        if statement.retain_days is not None:
            return datetime.now().replace(microsecond=0) + timedelta(days=statement.retain_days)
        return statement.expire_date

    def succeed(self, backup: BackupSet) -> Outcome:
        """All devices have all of it. Only now is anything cut off the log, or built on by a differential."""
        self._commit(backup)
        self._remember(backup)
        pages, files = backup.pages, tuple((file.name, file.pages) for file in backup.files)
        if self._kind == "L":
            pages = -(-sum(len(part.data) for part in backup.log) // PAGE_SIZE)
            files = tuple((file.name, pages) for file in backup.files if file.is_log)
        lsns = backup.first_lsn, backup.last_lsn
        return Outcome(pages, files, lsns, backup.number, self._kind, backup.base_lsn)

    def _commit(self, backup: BackupSet) -> None:
        entry = self._entry
        first, last = self._range.first, self._range.last
        with entry.lock:
            if self._kind == "D" and not self._copy_only:
                entry.base = Base(first, backup.guid)
                if entry.recovery_model != "SIMPLE" and entry.chain is None:
                    entry.chain, entry.begins_chain = first, True
                    entry.log.truncate(first)
            if self._kind == "L" and not self._copy_only and entry.chain is not None:
                entry.chain, entry.begins_chain = max(entry.chain, last), False
                entry.log.truncate(last)
            if self._tail:
                entry.redo = Redo(last, datetime.now(), entry.base, entry.forks)
                entry.standby = self._statement.standby
                entry.state = RESTORING if entry.standby is None else ONLINE

    def _remember(self, backup: BackupSet) -> None:
        entry, statement = self._entry, self._statement
        forks = path_through(entry.forks, self._range.first, self._range.last)
        forks = forks if self._kind == "L" else forks[-1:]  # of data there is one moment
        database_lsn = backup.database_lsn if backup.database_lsn != NO_LSN else None
        differential = self._kind == "I"
        self._execution.remember(BackupRecord(
            database=entry.name, type=self._kind, devices=statement.devices, started=backup.started,
            finished=datetime.now(), set_guid=uuid.UUID(bytes_le=backup.guid),
            media_guid=uuid.UUID(bytes_le=self.media.guid), size=backup.size, first_lsn=backup.first_lsn,
            last_lsn=backup.last_lsn, checkpoint_lsn=backup.checkpoint_lsn, database_lsn=database_lsn,
            differential_base_lsn=backup.base_lsn if differential else None,
            differential_base_guid=uuid.UUID(bytes_le=backup.base_guid) if differential else None,
            first_fork=uuid.UUID(bytes_le=forks[0].guid), last_fork=uuid.UUID(bytes_le=forks[-1].guid),
            fork_lsn=lsn_of(forks[-1].start) if forks[0].guid != forks[-1].guid else None,
            family_guid=uuid.UUID(bytes_le=entry.family_guid), is_copy_only=self._copy_only,
            is_snapshot=backup.snapshot,
            has_checksums=backup.checksum, begins_log_chain=bool(backup.extra["begins_chain"]), is_tail=self._tail,
            position=backup.number, recovery_model=str(backup.extra["recovery_model"]).replace("_", "-"),
            name=statement.name, description=statement.description, media_name=self.media.name or None,
            media_description=self.media.description or None, user=backup.user, server_name=backup.server,
            machine_name=backup.machine, database_created=backup.created, database_version=DATABASE_VERSION,
            block_size=self.media.block_size, expires=self._expires, files=_file_records(backup),
        ))  # fmt: skip


class _PagesBackup(Backup):
    """One whose pages or log go through the devices."""

    def run(self) -> Outcome:
        execution, made = self._execution, []
        with contextlib.ExitStack() as stack:

            def streams() -> BackupStripes:
                # Once the client waits for nothing else: copying may take long.
                mounted = execution.devices.mounted
                self.media, self._number = mounted.media, mounted.number
                source, extents = self._source()
                stack.enter_context(contextlib.closing(source))
                pages = source.pages if extents is None else sum(count for _, count in extents) * EXTENT_PAGES
                backup = self.describe(source.pages or self._whole_pages(), pages)
                made.append(backup)
                execution.expect(backup.pages * PAGE_SIZE)
                transfer = execution.devices.write_size
                return BackupStripes(
                    source, self.media, backup, transfer, SMALL_BUFFER, extents=extents, mounted=mounted
                )

            try:
                execution.devices.write(streams)
            except BaseException:
                if self._tail and made:
                    self._entry.state = ONLINE
                raise
        return self.succeed(made[-1])

    def _source(self) -> tuple[Snapshot, list[tuple[int, int]] | None]:
        """The pages at one moment, and which extents of them go into the backup (None: all)."""
        entry, database, check = self._entry, self._database, self._execution.devices.check
        if self._kind == "L":
            self.begin()
            return NoPages(), None
        if not isinstance(database, Synthetic):
            snapshot = database.snapshot(entry.name, check)
            self.begin()
            return snapshot, None
        with entry.lock:
            self.begin()
            assert entry.versions is not None
            versions, base = entry.versions.copy(), entry.base
        extents = None
        if self._kind == "I":
            assert base is not None
            changed = (versions > base.number).nonzero()[0].tolist()
            extents = _runs(changed if changed[:1] == [0] else [0, *changed])  # the first one names the file: always
        return database.snapshot(entry.name, check, versions), extents

    def _whole_pages(self) -> int:
        database = self._database
        return database.pages if isinstance(database, Synthetic) else 0


def _file_records(backup: BackupSet) -> tuple[FileRecord, ...]:
    log = sum(len(part.data) for part in backup.log)
    return tuple(
        FileRecord(file.file_id, file.name, file.path, "L" if file.is_log else "D", file.size,
                   log if file.is_log else file.pages * PAGE_SIZE)
        for file in backup.files
    )  # fmt: skip


def _kind_of(database: PagedDatabase) -> dict[str, object]:
    """What a restore needs to make the database anew."""
    if isinstance(database, Synthetic):
        return {"kind": "synthetic", "size": database.size, "seed": database.seed}
    return {"kind": "sqlite" if isinstance(database, Sqlite) else "pages"}


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers as beginnings and lengths of what follows on one another."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and sum(runs[-1]) == number:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((number, 1))
    return runs


def _process_user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name
        return str(os.geteuid())
