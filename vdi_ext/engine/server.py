"""The stand-in for SQL Server: executes BACKUP DATABASE and RESTORE DATABASE over virtual devices.

It behaves towards the interface as SQL Server does, and towards the caller with its messages. It is not SQL Server:
what it makes of SQLite and synthetic databases is honest tape format, and restores only into it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING

from ..events import Consumer, EventStream, MessageEvent
from ..mtf import EXTENT_PAGES, Lsn
from .catalog import Catalog, DatabaseInfo, Entry
from .database import DatabaseError
from .databases import Database
from .execution import Execution, OnMessage, Result
from .log import lsn_of
from .messages import Message
from .msdb import History
from .tsql import Statement

if TYPE_CHECKING:
    from .session import Session

BANNER = "vdi_ext stand-in: executes BACKUP and RESTORE over virtual devices; it is not SQL Server"

VERSION = (16, 0, 1000, 6)  # whose columns and messages the stand-in has
FIRST_SPID = 51  # of sessions of users

log = logging.getLogger("vdi_ext.engine")
log.addHandler(logging.NullHandler())  # a library's log goes nowhere until somebody wants it


class Engine:
    """Executes statements.

    Parameters
    ----------
    databases : mapping of str to Database
        By name; names are compared without case.
    instance : str, optional
        Of SQL Server, as the clients name it.
    provider : Provider, str or path, optional
        Library; the embedded one by default.
    server_name : str, optional
        As in the backup; the host's name by default.
    history : History, optional
        Of backups and restores; by default one that ends with the engine.
    events : iterable of callable, optional
        Consumers of everything that happens, as `vdi_ext.events.EventStream` takes them.

    Attributes
    ----------
    catalog : Catalog
        The databases and their states.
    error_log : deque of Message
        What SQL Server writes to its error log; the last 1000.

    Notes
    -----
    Any thread may call `execute`, several at a time, and `cancel`.
    """

    def __init__(
        self,
        databases: Mapping[str, Database],
        *,
        instance: str | None = None,
        provider: object = None,
        server_name: str | None = None,
        history: History | None = None,
        events: Iterable[Consumer] = (),
    ) -> None:
        self.error_log: deque[Message] = deque(maxlen=1000)
        self.instance = instance
        self.provider = provider
        self.version = VERSION
        self.server_name = server_name or socket.gethostname()
        self.history = history if history is not None else History()
        self.started = datetime.now()
        self.catalog = Catalog(databases, self.started)
        self.events = EventStream(events, "server")
        self._lock = threading.Lock()
        self._running: set[Execution] = set()
        self._sessions: dict[int, Session] = {}
        self._users: dict[str, int] = {}  # backups of a database that run; -1: a restore
        log.info("%s", BANNER)

    def execute(
        self,
        sql: str | Statement,
        on_message: OnMessage | None = None,
        on_start: Callable[[Execution], object] | None = None,
    ) -> Result:
        """Execute one statement in this thread.

        Parameters
        ----------
        sql : str or Statement
            BACKUP or RESTORE.
        on_message : callable, optional
            Called with every `Message` as it comes, errors included, in this thread.
        on_start : callable, optional
            Called with the `Execution` before it runs, in this thread.

        Raises
        ------
        SqlError
            The statement failed; carries all messages. Its cause is what went wrong below, a `VDAbortError` for
            instance that names the process that died.
        """
        execution = Execution(self, sql, on_message)
        with self._lock:
            self._running.add(execution)
        try:
            if on_start is not None:
                on_start(execution)
            return execution.run()
        finally:
            with self._lock:
                self._running.discard(execution)

    @property
    def databases(self) -> tuple[DatabaseInfo, ...]:
        """What sys.databases says, those of the system included; by number."""
        return tuple(entry.info for entry in self.catalog)

    def change(self, name: str, page: int = 0, pages: int = EXTENT_PAGES, *, at: datetime | None = None) -> Lsn:
        """Change pages of a synthetic database, as a transaction would.

        Parameters
        ----------
        name : str
        page, pages : int
            The first and how many; whole extents around them change.
        at : datetime, optional
            Local time of the transaction, which STOPAT looks at; now by default.

        Returns
        -------
        Lsn
            Of the log record.

        Raises
        ------
        DatabaseError
            911: there is no such database. 927: it is being restored.
        ValueError
            It is not synthetic, or has no such pages.
        """
        return lsn_of(self._entry(name).change(page, pages, at or datetime.now()))

    def set_recovery_model(self, name: str, model: str) -> None:
        """ALTER DATABASE ... SET RECOVERY.

        Parameters
        ----------
        name : str
        model : str
            ``"SIMPLE"``, ``"FULL"`` or ``"BULK_LOGGED"``.

        Raises
        ------
        DatabaseError
            911: there is no such database. 5058: it has no log that could be backed up.
        ValueError
            There is no such model.
        """
        self._entry(name).set_recovery_model(model)

    def cancel(self) -> None:
        """End every statement that runs: their device sets are aborted. Returns at once."""
        with self._lock:
            running = list(self._running)
        for execution in running:
            execution.cancel()

    # ---- for sessions

    def attach(self, session: Session) -> int:
        """Note a session, and number it."""
        with self._lock:
            spid = next(spid for spid in itertools.count(FIRST_SPID) if spid not in self._sessions)
            self._sessions[spid] = session
        return spid

    def detach(self, session: Session) -> None:
        with self._lock:
            if self._sessions.get(session.spid) is session:
                del self._sessions[session.spid]

    @property
    def sessions(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def name_of(self, database: str) -> str:
        """A database's name as it is written. Raises `DatabaseError`."""
        return self.find(database)[0]

    # ---- for executions

    def find(self, name: str) -> tuple[str, Database]:
        """A database's name as it is spelled, and the database. Raises `DatabaseError`."""
        entry = self._entry(name)
        return entry.name, entry.database

    def _entry(self, name: str) -> Entry:
        entry = self.catalog.get(name)
        if entry is None:
            raise DatabaseError(911, name)
        return entry

    @contextlib.contextmanager
    def using(self, name: str, *, alone: bool) -> Iterator[None]:
        """Backups of a database may run together; a restore runs alone."""
        key = name.casefold()
        with self._lock:
            users = self._users.get(key, 0)
            if users < 0 or (alone and users):
                raise DatabaseError(3101 if alone else 3023)
            self._users[key] = -1 if alone else users + 1
        try:
            yield
        finally:
            with self._lock:
                self._users[key] = 0 if alone else self._users[key] - 1

    def to_log(self, entry: Message) -> None:
        self.error_log.append(entry)
        self.events.emit(MessageEvent, entry.text, entry.number, entry.severity, entry.state, log=True)
        log.log(logging.ERROR if entry.severity > 10 else logging.INFO, "%s", entry)
