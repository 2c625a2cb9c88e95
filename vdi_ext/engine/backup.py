"""BACKUP: a snapshot of the database, described and dealt to the devices."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import uuid
from datetime import datetime
from typing import TYPE_CHECKING

from ..mtf import PAGE_SIZE, BackupSet, DatabaseFile, Lsn, MediaSet
from .database import PagedDatabase
from .outcome import Outcome, refuse_checksum
from .replay import Replay
from .stripes import BackupStripes, ReplayStreams
from .transfer import SMALL_BUFFER

if TYPE_CHECKING:
    from .execution import Execution

LSNS: tuple[Lsn, Lsn] = ((1, 1, 1), (1, 2, 1))  # no database here has a log


def back_up(execution: Execution) -> Outcome:
    """Execute a BACKUP DATABASE. Raises `Failure`, `DatabaseError`."""
    database = execution.database
    database.check(execution.name)
    if isinstance(database, Replay):
        return _send_files(execution, database)
    return _send_pages(execution, database)


def _send_files(execution: Execution, database: Replay) -> Outcome:
    statement, devices = execution.statement, execution.devices
    refuse_checksum(statement)
    with contextlib.closing(database.source(statement.devices, devices.block_size)) as source:
        total = sum(source.sizes)
        execution.expect(total)
        devices.write(lambda: ReplayStreams(source, devices.transfer_size))
    return Outcome(-(-total // PAGE_SIZE), (), LSNS)


def _send_pages(execution: Execution, database: PagedDatabase) -> Outcome:
    name, devices = execution.name, execution.devices
    files: list[DatabaseFile] = []
    with contextlib.ExitStack() as stack:

        def streams() -> BackupStripes:
            snapshot = stack.enter_context(contextlib.closing(database.snapshot(name, devices.check)))
            files.extend(database.files(name, snapshot.pages))
            execution.expect(snapshot.pages * PAGE_SIZE)
            media, backup = describe(execution, tuple(files))
            return BackupStripes(snapshot, media, backup, devices.transfer_size, SMALL_BUFFER)

        devices.write(streams)
    return Outcome(sum(file.pages for file in files), tuple((file.name, file.pages) for file in files), LSNS)


def describe(execution: Execution, files: tuple[DatabaseFile, ...]) -> tuple[MediaSet, BackupSet]:
    """A new media set and the backup set in it."""
    statement = execution.statement
    number = uuid.uuid4()
    media = MediaSet(number.bytes_le, len(statement.devices), execution.devices.block_size, number.time_low)
    now = datetime.now()
    backup = BackupSet(
        uuid.uuid4().bytes_le, execution.name, execution.engine.server_name, socket.gethostname(), _user(),
        files, now, now, bool(statement.checksum), uuid.uuid4().bytes_le, *LSNS,
    )  # fmt: skip
    return media, backup


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user without a name
        return str(os.geteuid())
