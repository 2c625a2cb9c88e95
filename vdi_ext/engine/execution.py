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
from .database import DatabaseError
from .databases import Database
from .device_set import DeviceRun
from .failures import Explainer, Failure, of_database
from .messages import Message, SqlError, message
from .outcome import Outcome
from .restore import restore
from .snapshots import back_up_snapshot, restore_snapshot
from .tsql import Statement, parse, refuse

if TYPE_CHECKING:
    from .server import Engine

OnMessage = Callable[[Message], object]

log = logging.getLogger("vdi_ext.engine")


@dataclass(frozen=True)
class Result:
    """How a statement ended that ended well.

    Parameters
    ----------
    messages : tuple of Message
        In their order; the last one is 3014.
    pages : int
    seconds : float
    """

    messages: tuple[Message, ...]
    pages: int
    seconds: float


class Execution:
    """One statement that is being executed.

    Attributes
    ----------
    engine : Engine
    statement : Statement
    name : str
        Of the database, as the engine spells it.
    database : Database
    devices : DeviceRun
    explainer : Explainer
    moved : int
        Bytes of the database that went through so far.
    """

    engine: Engine
    statement: Statement
    name: str
    database: Database
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
        self._events = self.engine.events.scoped(statement.devices[0])
        self._events.emit(StateChanged, "statement", "running", detail=f"{statement.operation} {statement.database}")
        try:
            self.name, self.database = self.engine.find(statement.database)
            self._prepare()
            with self.engine.using(self.name, alone=statement.verb == "RESTORE"):
                outcome = self._act()
        except Failure as error:
            failure = error
        except DatabaseError as error:
            failure = of_database(error)
        else:
            seconds = time.monotonic() - started
            self._succeeded(outcome, seconds)
            self._events.emit(StateChanged, "statement", "succeeded")
            return Result(tuple(self._messages), outcome.pages, seconds)
        # Outside of the handler: an exception's frames hold views of the shared buffers, and while those live the set
        # stays mapped. What the caller gets must hold none.
        cause, messages = failure.cause, failure.messages
        del failure
        self._failed(cause, messages)

    def _act(self) -> Outcome:
        if self.statement.snapshot:
            return back_up_snapshot(self) if self.statement.verb == "BACKUP" else restore_snapshot(self)
        return back_up(self) if self.statement.verb == "BACKUP" else restore(self)

    def _prepare(self) -> None:
        writing = self.statement.verb == "BACKUP"
        self.explainer = Explainer(self.engine, self.statement.devices, self.name, writing=writing)
        self.devices = DeviceRun(self.engine, self.statement, self.explainer, self._progress)
        with self._lock:
            self._run = self.devices
            self.explainer.cancelled = self._cancelled

    def _succeeded(self, outcome: Outcome, seconds: float) -> None:
        statement, name, pages = self.statement, self.name, outcome.pages
        if statement.stats is not None:
            self._percent(100)
        for file, count in outcome.files:
            self.tell(message(4035, count, name, file, 1))
        took = max(1, round(seconds * 1000))
        rate = pages * PAGE_SIZE * 1_000_000 // (took << 20)  # thousandths of a MiB a second
        spoken = (took // 1000, took % 1000, rate // 1000, rate % 1000)
        self.tell(message(3014, statement.operation, pages, *spoken))
        devices = ", ".join(f"'{device}'" for device in statement.devices)
        where = f"FILE=1, TYPE=VIRTUAL_DEVICE: {{{devices}}}"
        now = datetime.now().strftime("%Y/%m/%d(%H:%M:%S)")
        lsns = [":".join(map(str, lsn)) for lsn in outcome.lsns]
        values: tuple[object, ...] = (name, now, pages, *lsns) if statement.verb == "BACKUP" else (name, now, *lsns)
        number = 18264 if statement.verb == "BACKUP" else 18267
        self.engine.to_log(message(number, *values, len(statement.devices), where))

    def _failed(self, cause: BaseException | None, messages: tuple[Message, ...]) -> NoReturn:
        if cause is not None:
            log.info("%s fails: %s", self.statement.operation, cause)
        self.tell(*messages, message(3013, self.statement.operation))
        if self.statement.verb == "BACKUP":
            self.engine.to_log(message(3041, f"BACKUP DATABASE {self.statement.database}"))
        self._events.emit(StateChanged, "statement", "failed")
        raise SqlError(tuple(self._messages)) from cause

    # ---- messages and progress

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
