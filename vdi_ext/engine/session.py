"""A session: what one connection says, batch by batch, and what it hears."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from .database import DatabaseError
from .messages import Message, SqlError, message
from .tsql.batch import Node, SetOption, Transaction, Use, parse_batch
from .tsql.parser import Draft
from .types import Column, Parameter, SqlType

if TYPE_CHECKING:
    from .execution import Execution
    from .server import Engine

__all__ = ["Column", "Parameter", "Session", "Sink", "SqlType"]


class Sink(Protocol):
    """Where a batch's results go, in their order, on the thread that executes it."""

    def message(self, message: Message) -> None:
        """Information and errors, as they happen."""

    def columns(self, columns: tuple[Column, ...]) -> None:
        """A result set begins."""

    def row(self, values: tuple[object, ...]) -> None: ...

    def done(self, count: int | None) -> None:
        """A statement ended; None where it has no number of rows, also after SET NOCOUNT ON."""


class Session:
    """One connection's state.

    Parameters
    ----------
    engine : Engine
    login, program, host : str
        Who connected, with what, from where.
    database : str
        Current at the beginning.

    Attributes
    ----------
    spid : int
        Number of the session.
    transactions : int
        Open transactions.
    database : str
        Current database.
    killed : bool
        Somebody ended the session with KILL; it runs nothing more.
    on_kill : callable or None
        Called at that moment, on the killer's thread.

    Notes
    -----
    One batch at a time; `cancel`, `kill` and `close` are for any thread.
    """

    def __init__(
        self, engine: Engine, *, login: str = "sa", program: str = "", host: str = "", database: str = "master"
    ) -> None:
        self.login = login
        self.program = program
        self.host = host
        self.database = database
        self.transactions = 0
        self.killed = False
        self.on_kill: object = None
        self._engine = engine
        self._lock = threading.Lock()
        self._cancelled = False
        self._execution: Execution | None = None
        self._count = True  # SET NOCOUNT OFF
        self.spid = engine.attach(self)

    def run(self, batch: str, sink: Sink, parameters: Mapping[str, Parameter] | None = None) -> None:
        """Execute every statement of a batch.

        Parameters
        ----------
        batch : str
        sink : Sink
            Gets everything, errors included; what it raises ends the batch and is raised here.
        parameters : mapping of str to Parameter, optional
            By name with @.
        """
        with self._lock:
            self._cancelled = self.killed
        self._sink = sink
        self._variables = {name.lower(): one.value for name, one in (parameters or {}).items()}
        try:
            nodes = parse_batch(batch)
        except SqlError as error:
            self._refused(error)
            return
        for node in nodes:
            if self._cancelled:
                return
            try:
                self._statement(node)
            except SqlError as error:
                self._refused(error)

    def cancel(self) -> None:
        """End what runs: the device set of a BACKUP or RESTORE is aborted. Returns at once."""
        with self._lock:
            self._cancelled = True
            execution = self._execution
        if execution is not None:
            execution.cancel()

    def kill(self) -> None:
        """End the session, as KILL does."""
        self.killed = True
        self.cancel()
        if callable(self.on_kill):
            self.on_kill()

    def close(self) -> None:
        """Roll back and end. Idempotent."""
        self.killed = True
        self.cancel()
        self.transactions = 0
        self._engine.detach(self)

    # ---- statements

    def _refused(self, error: SqlError) -> None:
        for entry in error.messages:
            self._sink.message(entry)
        self._sink.done(None)

    def _statement(self, node: Node) -> None:
        if isinstance(node, Draft):
            self._backup_or_restore(node)
            return
        if isinstance(node, SetOption):
            self._set(node)
        elif isinstance(node, Use):
            self._use(node)
        elif isinstance(node, Transaction):
            self._transaction(node)
        self._sink.done(None)

    def _backup_or_restore(self, draft: Draft) -> None:
        if self.transactions:
            problem = message(3021, line=draft.line), message(3013, draft.operation, line=draft.line)
            raise SqlError(problem)
        statement = draft.bind(self._variables)

        def started(execution: Execution) -> None:
            execution.session = self
            with self._lock:
                self._execution = execution
                cancelled = self._cancelled
            if cancelled:
                execution.cancel()

        def tell(entry: Message) -> None:
            self._sink.message(dataclasses.replace(entry, line=draft.line))

        result = None
        try:
            result = self._engine.execute(statement, tell, started)
        except SqlError:
            pass  # told as it happened
        finally:
            with self._lock:
                self._execution = None
        if result is None or not result.columns:
            self._sink.done(None)
            return
        self._sink.columns(result.columns)
        for row in result.rows:
            self._sink.row(row)
        self._sink.done(len(result.rows) if self._count else None)

    def _set(self, node: SetOption) -> None:
        if node.name == "NOCOUNT":
            self._count = not node.on

    def _use(self, node: Use) -> None:
        try:
            self.database = self._engine.name_of(node.database)
        except DatabaseError:
            raise SqlError((message(911, node.database, line=node.line),)) from None
        self._sink.message(message(5701, self.database, state=2, line=node.line))

    def _transaction(self, node: Transaction) -> None:
        if node.action == "BEGIN":
            self.transactions += 1
        elif node.action == "SAVE":
            pass
        elif not self.transactions:
            raise SqlError((message(3902 if node.action == "COMMIT" else 3903, line=node.line),))
        else:
            self.transactions = self.transactions - 1 if node.action == "COMMIT" else 0
