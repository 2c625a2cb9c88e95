"""The stand-in for SQL Server: executes BACKUP DATABASE and RESTORE DATABASE over virtual devices.

It behaves towards the interface as SQL Server does, and towards the caller with its messages. It is not SQL Server:
what it makes of SQLite and synthetic databases is honest tape format, and restores only into it.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping

from .database import DatabaseError
from .databases import Database
from .execution import Execution, OnMessage, Result
from .messages import Message

BANNER = "vdi_ext stand-in: executes BACKUP and RESTORE over virtual devices; it is not SQL Server"

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

    Attributes
    ----------
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
    ) -> None:
        self.error_log: deque[Message] = deque(maxlen=1000)
        self._databases = {name.casefold(): (name, database) for name, database in databases.items()}
        self.instance = instance
        self.provider = provider
        self.server_name = server_name or socket.gethostname()
        self._lock = threading.Lock()
        self._running: set[Execution] = set()
        self._users: dict[str, int] = {}  # backups of a database that run; -1: a restore
        log.info("%s", BANNER)

    def execute(self, sql: str, on_message: OnMessage | None = None) -> Result:
        """Execute one statement in this thread.

        Parameters
        ----------
        sql : str
            BACKUP DATABASE or RESTORE DATABASE.
        on_message : callable, optional
            Called with every `Message` as it comes, errors included, in this thread.

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
            return execution.run()
        finally:
            with self._lock:
                self._running.discard(execution)

    def cancel(self) -> None:
        """End every statement that runs: their device sets are aborted. Returns at once."""
        with self._lock:
            running = list(self._running)
        for execution in running:
            execution.cancel()

    # ---- for executions

    def find(self, name: str) -> tuple[str, Database]:
        try:
            return self._databases[name.casefold()]
        except KeyError:
            raise DatabaseError(911, name) from None

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
        log.log(logging.ERROR if entry.severity > 10 else logging.INFO, "%s", entry)
