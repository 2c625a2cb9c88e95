"""A DB-API driver with the stand-in behind it, in this process: what a user's own `connect` function may return.

It does as PEP 249 says and no more: `messages` is the optional extension, cleared by each call; an error is raised with
its number, further errors of the same statement by `nextset`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vdi_ext.engine import Engine
from vdi_ext.engine.messages import Message
from vdi_ext.engine.session import Session


class Error(Exception):
    """The base of a driver's errors."""


class InterfaceError(Error):
    """The driver's own trouble."""


class DatabaseError(Error):
    """The server's."""

    def __init__(self, number: int, text: str, severity: int) -> None:
        super().__init__(number, text)
        self.severity = severity


class Cursor:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.messages: list[tuple[type, Exception]] = []
        self.description: list[tuple] | None = None
        self._results: list[tuple[str, Any]] = []
        self._rows: list[tuple] = []

    # ---- a sink of the session

    def message(self, message: Message) -> None:
        error = DatabaseError(message.number, message.text, message.severity)
        self._results.append(("error" if message.severity > 10 else "message", error))

    def columns(self, columns: tuple) -> None:
        self._results.append(("rows", ([(column.name,) for column in columns], [])))

    def row(self, values: tuple) -> None:
        self._results[-1][1][1].append(values)

    def done(self, count: int | None) -> None:
        self._results.append(("done", count))

    # ---- PEP 249

    def execute(self, sql: str) -> None:
        self._results = []
        self._connection.run(sql, self)
        self._step()

    def nextset(self) -> bool | None:
        return self._step()

    def _step(self) -> bool | None:
        del self.messages[:]
        self.description = None
        while self._results:
            kind, content = self._results.pop(0)
            if kind == "message":
                self.messages.append((DatabaseError, content))
            elif kind == "error":
                raise content
            elif kind == "rows":
                self.description, self._rows = content
                return True
        return None if not self.messages else True

    def fetchall(self) -> list[tuple]:
        return self._rows

    def close(self) -> None:
        pass


class Connection:
    def __init__(self, engine: Engine, before: Callable[[str], None] | None) -> None:
        self.session = Session(engine)
        self.autocommit = False
        self.statements: list[str] = []
        self._before = before
        self.closed = False

    def run(self, sql: str, sink: Cursor) -> None:
        if self.closed:
            raise InterfaceError("the connection is closed")
        self.statements.append(sql)
        if self._before is not None:
            self._before(sql)
        self.session.run(sql, sink)
        if self.session.killed:
            raise InterfaceError("the connection was closed by the server")

    def cursor(self) -> Cursor:
        return Cursor(self)

    def close(self) -> None:
        self.closed = True
        self.session.close()


class Driver:
    """A `connect` function for jobs; remembers what was sent.

    Parameters
    ----------
    engine : Engine
    before : callable, optional
        Told each statement before it runs, on its thread.
    """

    def __init__(self, engine: Engine, before: Callable[[str], None] | None = None) -> None:
        self.engine = engine
        self.before = before
        self.connections: list[Connection] = []

    def __call__(self) -> Connection:
        self.connections.append(Connection(self.engine, self.before))
        return self.connections[-1]

    @property
    def statements(self) -> list[str]:
        return [sql for connection in self.connections for sql in connection.statements]
