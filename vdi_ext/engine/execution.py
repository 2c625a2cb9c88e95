"""One statement, from its text to its result: its life, its messages, its progress."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from ..events import MessageEvent, StateChanged
from ..mtf import PAGE_SIZE
from .backup import back_up
from .catalog import Entry
from .database import DatabaseError
from .databases import Database
from .device_set import DeviceRun
from .failures import Explainer, Failure, of_database
from .looking import look
from .messages import Message, SqlError, message
from .msdb import BackupRecord, RestoreRecord
from .outcome import Outcome
from .restore import restore
from .snapshots import back_up_snapshot, restore_snapshot
from .tsql import Statement, parse, refuse
from .types import Column

if TYPE_CHECKING:
    from .server import Engine
    from .session import Session

OnMessage = Callable[[Message], object]

# What the error log says of a success: of a database, a differential, a log.
_LOG_ENTRIES = {
    ("BACKUP", "D"): 18264, ("BACKUP", "I"): 18270, ("BACKUP", "L"): 18265,
    ("RESTORE", "D"): 18267, ("RESTORE", "I"): 18271, ("RESTORE", "L"): 18268,
}  # fmt: skip

log = logging.getLogger("vdi_ext.engine")


@dataclass(frozen=True)
class Result:
    """How a statement ended that ended well.

    Parameters
    ----------
    messages : tuple of Message
        In their order; the last one is 3014 (RESTORE VERIFYONLY: 3262).
    pages : int
    seconds : float
    columns : tuple of Column
        Of the result set that RESTORE HEADERONLY, FILELISTONLY and LABELONLY have.
    rows : tuple of tuple
    """

    messages: tuple[Message, ...]
    pages: int
    seconds: float
    columns: tuple[Column, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()


class Execution:
    """One statement that is being executed.

    Attributes
    ----------
    engine : Engine
    statement : Statement
    name : str
        Of the database, as the engine spells it.
    found : Entry or None
        The database; None where RESTORE is to create it.
    session : Session or None
        Whose statement it is.
    devices : DeviceRun
    explainer : Explainer
    moved : int
        Bytes of the database that went through so far.
    """

    engine: Engine
    statement: Statement
    name: str
    found: Entry | None
    devices: DeviceRun
    explainer: Explainer

    def __init__(self, engine: Engine, sql: str | Statement, on_message: OnMessage | None) -> None:
        self.engine = engine
        self._events = engine.events
        self._sql = sql
        self._on_message = on_message
        self._messages: list[Message] = []
        self._lock = threading.Lock()
        self._cancelled = False
        self._run: DeviceRun | None = None
        self._result: tuple[tuple[Column, ...], tuple[tuple[object, ...], ...]] = ((), ())
        self.session: Session | None = None
        self.moved = 0
        self._total = 0  # bytes
        self._told = 0  # percent

    def cancel(self) -> None:
        """End it. Any thread."""
        with self._lock:
            self._cancelled = True
            run = self._run
        if run is not None:
            run.cancel()

    def run(self) -> Result:
        """Execute it. Raises `SqlError`."""
        started = time.monotonic()
        try:
            self.statement = statement = parse(self._sql) if isinstance(self._sql, str) else self._sql
            refuse(statement)
        except SqlError as error:
            self.tell(*error.messages)
            raise
        self._events = self.engine.events.scoped(statement.devices[0] if statement.devices else "")
        self._events.emit(StateChanged, "statement", "running", detail=f"{statement.operation} {statement.database}")
        try:
            outcome = self._act()
        except Failure as error:
            failure = error
        except DatabaseError as error:
            failure = of_database(error)
        else:
            seconds = time.monotonic() - started
            if outcome is not None:
                self._succeeded(outcome, seconds)
            self._events.emit(StateChanged, "statement", "succeeded")
            pages = outcome.pages if outcome is not None else 0
            return Result(tuple(self._messages), pages, seconds, *self._result)
        # Outside of the handler: an exception's frames hold views of the shared buffers, and while those live the set
        # stays mapped. What the caller gets must hold none.
        cause, messages = failure.cause, failure.messages
        del failure
        self._failed(cause, messages)

    def _act(self) -> Outcome | None:
        statement, engine = self.statement, self.engine
        self.found = engine.catalog.get(statement.database)
        self.name = statement.database if self.found is None else self.found.name
        if self.found is None and statement.verb == "BACKUP":
            raise DatabaseError(911, statement.database)
        self._prepare()
        if not statement.database:
            return look(self)
        with engine.using(self.name, alone=statement.verb == "RESTORE"):
            if statement.snapshot:
                return back_up_snapshot(self) if statement.verb == "BACKUP" else restore_snapshot(self)
            return back_up(self) if statement.verb == "BACKUP" else restore(self)

    def _prepare(self) -> None:
        writing = self.statement.verb == "BACKUP"
        self.explainer = Explainer(self.engine, self.statement.devices, self.name, writing=writing)
        self.devices = DeviceRun(self.engine, self.statement, self.explainer, self._progress)
        with self._lock:
            self._run = self.devices
            self.explainer.cancelled = self._cancelled

    @property
    def entry(self) -> Entry:
        """The database, which exists."""
        assert self.found is not None
        return self.found

    @property
    def database(self) -> Database:
        return self.entry.database

    def claim(self) -> None:
        """Refuse to go on while a session uses the database. Raises `DatabaseError`."""
        for session in self.engine.sessions:
            if session.database.casefold() == self.name.casefold():
                if session is self.session:
                    raise DatabaseError(3102, self.statement.verb, self.name)
                raise DatabaseError(3101)

    def remember(self, record: BackupRecord | RestoreRecord) -> None:
        """Put it into msdb; the work was done whether that succeeds or not."""
        try:
            self.engine.history.record(record)
        except OSError as error:
            log.error("msdb: %s", str(error))  # the text: a record that is kept would keep frames
            self.tell(message(3009))

    def _succeeded(self, outcome: Outcome, seconds: float) -> None:
        statement, name, pages = self.statement, self.name, outcome.pages
        if statement.stats is not None:
            self._percent(100)
        for file, count in outcome.files:
            self.tell(message(4035, count, name, file, outcome.position))
        took = max(1, round(seconds * 1000))
        rate = pages * PAGE_SIZE * 1_000_000 // (took << 20)  # thousandths of a MiB a second
        spoken = (took // 1000, took % 1000, rate // 1000, rate % 1000)
        self.tell(message(3014, statement.operation, pages, *spoken))
        devices = ", ".join(f"'{device}'" for device in statement.devices)
        where = f"FILE={outcome.position}, TYPE=VIRTUAL_DEVICE: {{{devices}}}"
        database = self.engine.catalog.get(name)  # a restore may have made it
        created = (database.created if database is not None else datetime.now()).strftime("%Y/%m/%d(%H:%M:%S)")
        lsns = [":".join(map(str, lsn)) for lsn in outcome.lsns]
        values: list[object] = [name, created]
        if statement.verb == "BACKUP" and outcome.kind != "L":
            values.append(pages)
        number = _LOG_ENTRIES[statement.verb, outcome.kind]
        if number == 18270:
            lsns.append(":".join(map(str, outcome.base_lsn)))
        self.engine.to_log(message(number, *values, *lsns, len(statement.devices), where))

    def _failed(self, cause: BaseException | None, messages: tuple[Message, ...]) -> NoReturn:
        if cause is not None:
            log.info("%s fails: %s", self.statement.operation, cause)
        operation = "VERIFY DATABASE" if self.statement.kind == "VERIFYONLY" else self.statement.operation
        self.tell(*messages, message(3013, operation))
        if self.statement.verb == "BACKUP":
            self.engine.to_log(message(3041, f"{self.statement.operation} {self.statement.database}"))
        self._events.emit(StateChanged, "statement", "failed")
        raise SqlError(tuple(self._messages)) from cause

    # ---- messages and progress

    def show(self, columns: tuple[Column, ...], rows: list[tuple[object, ...]]) -> None:
        """Have the statement end with a result set."""
        self._result = columns, tuple(rows)

    def tell(self, *messages: Message) -> None:
        """Send messages to the driver."""
        for entry in messages:
            self._messages.append(entry)
            self._events.emit(MessageEvent, entry.text, entry.number, entry.severity, entry.state)
            if self._on_message is not None:
                self._on_message(entry)

    def expect(self, total: int) -> None:
        """Say how many bytes of the database will go through: what STATS counts against."""
        self._total = total

    @property
    def percent(self) -> float:
        """How much of it went through, 0 to 100; 0 where the whole is not known yet. Any thread."""
        total = self._total
        return min(100.0, self.moved * 100 / total) if total else 0.0

    def _progress(self, count: int) -> None:
        self.moved += count
        if self.statement.stats is not None and self._total:
            self._percent(min(100, self.moved * 100 // self._total))

    def _percent(self, percent: int) -> None:
        """The highest multiple of STATS that was reached, if it was not told yet; and 100."""
        step = self.statement.stats or 100
        reached = 100 if percent == 100 else percent // step * step
        if reached > self._told:
            self._told = reached
            self.tell(message(3211, reached))
