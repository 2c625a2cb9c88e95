"""A session: what one connection says, batch by batch, and what it hears."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from ..mtf import EXTENT_PAGES
from .batch import (
    Assign,
    Declare,
    Execute,
    If,
    Kill,
    Node,
    Print,
    Raise,
    Select,
    SetOption,
    SetRecovery,
    Transaction,
    Use,
    Wait,
    parse_batch,
    parse_declarations,
)
from .database import DatabaseError
from .messages import Message, SqlError, message
from .printing import formatted
from .queries import Cancelled, Context, Query, Rows
from .queries.conversions import convert
from .tsql.parser import Draft
from .types import Column, Parameter, SqlType

if TYPE_CHECKING:
    from .execution import Execution
    from .server import Engine

__all__ = ["Column", "Parameter", "Request", "Session", "Sink", "SqlType"]

# Errors that end the batch, not only the statement: conversions.
_END_THE_BATCH = frozenset({241, 245, 8114, 8169})
_MOST_NESTED = 32  # EXEC within EXEC
CHANGE = "vdi_ext_change"  # the procedure that changes a synthetic database


class Sink(Protocol):
    """Where a batch's results go, in their order, on the thread that executes it."""

    def message(self, message: Message, /) -> None:
        """Information and errors, as they happen."""

    def columns(self, columns: tuple[Column, ...], /) -> None:
        """A result set begins."""

    def row(self, values: tuple[object, ...], /) -> None: ...

    def done(self, count: int | None, /) -> None:
        """A statement ended; None where it has no number of rows, also after SET NOCOUNT ON."""


class Request:
    """What a session executes, as sys.dm_exec_requests shows it.

    Attributes
    ----------
    command : str
        ``"BACKUP DATABASE"``, ``"SELECT"`` and so on.
    started : datetime
        Local time.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self.started = datetime.now()
        self.execution: Execution | None = None

    @property
    def percent(self) -> float:
        """0 to 100 of a BACKUP or RESTORE."""
        return self.execution.percent if self.execution is not None else 0.0

    @property
    def status(self) -> str:
        return "suspended" if self.execution is not None else "running"

    @property
    def wait(self) -> str | None:
        return "BACKUPIO" if self.execution is not None else None


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
        Somebody ended the session with KILL, or it was closed; it runs nothing more.
    on_kill : callable or None
        Called when it is killed, on the killer's thread.
    request : Request or None
        What it executes.

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
        self.on_kill: Callable[[], object] | None = None
        self.request: Request | None = None
        self.batch = ""
        self.began = datetime.now()
        self.error = 0
        self.row_count = 0
        self._engine = engine
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._switches: set[str] = set()
        self._most_rows = 0
        self._nested = 0
        self._values: dict[str, object] = {}
        self._types: dict[str, SqlType] = {}
        self.spid = engine.attach(self)

    @property
    def handle(self) -> bytes:
        """sql_handle of what it executes."""
        return b"\2" + self.spid.to_bytes(4, "big")

    def run(self, batch: str, sink: Sink, parameters: Mapping[str, Parameter] | None = None) -> None:
        """Execute every statement of a batch.

        Parameters
        ----------
        batch : str
        sink : Sink
            Gets everything, errors included; what it raises ends the batch and is raised here.
        parameters : mapping of str to Parameter, optional
            By name with @. `value` tells what has become of them.
        """
        if not self.killed:
            self._cancelled.clear()
        self._sink = sink
        self.batch = batch.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        given = {name.lower(): one for name, one in (parameters or {}).items()}
        self._types = {name: one.type for name, one in given.items()}
        self._values = {name: one.value for name, one in given.items()}
        with contextlib.suppress(Cancelled):
            self._text(self.batch)
        if self.killed:
            sink.message(message(596))

    def value(self, name: str) -> object:
        """What a variable or parameter of the last batch holds."""
        return self._values[name.lower()]

    def cancel(self) -> None:
        """End what runs: the device set of a BACKUP or RESTORE is aborted. Returns at once."""
        with self._lock:
            self._cancelled.set()
            execution = self.request.execution if self.request is not None else None
        if execution is not None:
            execution.cancel()

    def kill(self) -> None:
        """End the session, as KILL does."""
        self.killed = True
        self.cancel()
        if self.on_kill is not None:
            self.on_kill()

    def close(self) -> None:
        """Roll back and end. Idempotent."""
        self.killed = True
        self.cancel()
        self.transactions = 0
        self._engine.detach(self)

    # ---- statements

    def _text(self, text: str) -> None:
        try:
            nodes = parse_batch(text, self._types, self.database)
        except SqlError as error:
            self._refused(error)
            return
        self._run(nodes)

    def _run(self, nodes: Sequence[Node]) -> bool:
        """Execute statements; returns whether the batch goes on."""
        for node in nodes:
            if self._cancelled.is_set():
                raise Cancelled
            if self._switches & {"NOEXEC", "PARSEONLY"} and not isinstance(node, SetOption):
                continue
            try:
                goes_on = self._statement(node)
            except SqlError as error:
                self._refused(error, node.line)
                goes_on = error.number not in _END_THE_BATCH and "XACT_ABORT" not in self._switches
                if "XACT_ABORT" in self._switches:
                    self.transactions = 0
            finally:
                with self._lock:
                    self.request = None
            if not goes_on:
                return False
        return True

    def _refused(self, error: SqlError, line: int | None = None) -> None:
        for entry in error.messages:
            self._say(dataclasses.replace(entry, line=line) if line and entry.line == 1 else entry)
        self._done(None)

    def _say(self, entry: Message) -> None:
        if entry.severity > 10:
            self.error = entry.number
        self._sink.message(entry)

    def _done(self, count: int | None) -> None:
        self._sink.done(None if "NOCOUNT" in self._switches else count)

    def _statement(self, node: Node) -> bool:
        if isinstance(node, If):
            truth = self._one(node.test)
            return self._run(node.then if truth else node.otherwise)
        if isinstance(node, Select):
            self._select(node)
            return True
        if isinstance(node, Draft):
            self._backup_or_restore(node)
            return True
        if isinstance(node, Execute):
            self._execute(node)
            return True
        simple: dict[type, Callable] = {
            SetOption: self._set, SetRecovery: self._set_recovery, Use: self._use,
            Transaction: self._transaction, Declare: self._declare, Assign: self._assign, Print: self._print,
            Raise: self._raise, Kill: self._kill, Wait: self._wait,
        }  # fmt: skip
        raised = simple[type(node)](node)
        if not raised:
            self.error = 0
        if not isinstance(node, Declare):
            self._done(None)
        return True

    # ---- queries

    def _rows(self, query: Query) -> Rows:
        context = Context(self._engine, self, self._engine.databases)
        return Rows(query, context, self._values, self._cancelled.is_set)

    def _one(self, query: Query) -> object:
        """The value of an expression."""
        with self._rows(query) as rows:
            return next(iter(rows))[0]

    def _select(self, node: Select) -> None:
        query = node.query
        with self._lock:
            self.request = Request("SELECT")
        if "IMPLICIT_TRANSACTIONS" in self._switches and query.tables and not self.transactions:
            self.transactions = 1
        if query.assigns:
            self._select_into_variables(query)
            return
        count = 0
        with self._rows(query) as rows:
            iterator = iter(rows)
            # Before the columns are told: what fails at once has no result set.
            row = next(iterator, None) if "FMTONLY" not in self._switches else None
            self._sink.columns(query.columns)
            while row is not None and not (self._most_rows and count >= self._most_rows):
                self._sink.row(row)
                count += 1
                row = next(iterator, None)
        self.error, self.row_count = 0, count
        self._done(count)

    def _select_into_variables(self, query: Query) -> None:
        count = 0
        with self._rows(query) as rows:
            for row in rows:
                count += 1
                for name, value in zip(query.assigns, row, strict=True):
                    self._values[name] = convert(value, self._types[name])
        self.error, self.row_count = 0, count
        self._done(None)

    # ---- variables

    def _declare(self, node: Declare) -> None:
        self._types[node.name] = node.type
        self._values[node.name] = None
        if node.value is not None:
            self._values[node.name] = convert(self._one(node.value), node.type)

    def _assign(self, node: Assign) -> None:
        self._values[node.name] = convert(self._one(node.value), self._types[node.name])

    # ---- messages

    def _print(self, node: Print) -> None:
        value = convert(self._one(node.value), SqlType("nvarchar", 4000))
        self._say(Message(0, 0, 1, " " if value is None or value == "" else str(value), node.line))

    def _raise(self, node: Raise) -> bool:
        """Returns whether it is an error."""
        entry = formatted([self._one(value) for value in node.values], node.line)
        self._say(entry)
        return entry.severity > 10

    # ---- settings

    def _set(self, node: SetOption) -> None:
        for name in node.names:
            if node.on is not None:
                (self._switches.add if node.on else self._switches.discard)(name)
        if node.names == ("ROWCOUNT",):
            self._most_rows = int(node.value) if node.value.isascii() and node.value.isdecimal() else 0
        elif node.names == ("LANGUAGE",):
            self._say(message(5703, "us_english", line=node.line))

    def _set_recovery(self, node: SetRecovery) -> None:
        name = node.database or self.database
        try:
            self._engine.set_recovery_model(name, node.model)
        except DatabaseError as error:
            first = message(5011, name, line=node.line) if error.number == 911 else message(*error.args, line=node.line)
            raise SqlError((first, message(5069, "ALTER DATABASE", line=node.line))) from None

    def _use(self, node: Use) -> None:
        wanted = node.database.casefold()
        info = next((info for info in self._engine.databases if info.name.casefold() == wanted), None)
        if info is None:
            raise SqlError((message(911, node.database, line=node.line),))
        if info.state != "ONLINE":
            raise SqlError((message(927, info.name, line=node.line),))
        self.database = info.name
        self._say(message(5701, info.name, state=2, line=node.line))

    def _transaction(self, node: Transaction) -> None:
        if node.action == "BEGIN":
            self.transactions += 1
        elif node.action == "SAVE":
            if not self.transactions:
                raise SqlError((message(628, line=node.line),))
        elif not self.transactions:
            raise SqlError((message(3902 if node.action == "COMMIT" else 3903, line=node.line),))
        else:
            self.transactions = self.transactions - 1 if node.action == "COMMIT" else 0

    # ---- others

    def _wait(self, node: Wait) -> None:
        text = str(self._one(node.time))
        moment = convert(text, SqlType("datetime2", scale=7))
        if not isinstance(moment, datetime) or moment.date() != datetime(1900, 1, 1).date():
            raise SqlError((message(148, text[:100], line=node.line),))
        with self._lock:
            self.request = Request("WAITFOR")
        if self._cancelled.wait((moment - datetime(1900, 1, 1)).total_seconds()):
            raise Cancelled

    def _kill(self, node: Kill) -> None:
        spid = convert(self._one(node.spid), SqlType("int"))
        if spid == self.spid:
            raise SqlError((message(6104, line=node.line),))
        if not isinstance(spid, int) or not 0 < spid < 1 << 15:
            raise SqlError((message(6101, spid if spid is not None else "NULL", line=node.line),))
        victim = next((session for session in self._engine.sessions if session.spid == spid), None)
        if victim is None:
            raise SqlError((message(6106, spid, line=node.line),))
        if node.status_only:
            raise SqlError((message(6120, spid, line=node.line),))
        victim.kill()

    def _execute(self, node: Execute) -> None:
        name = node.procedure.lower().rpartition(".")[2]
        if name == CHANGE:
            self._change(node)
            return
        if node.procedure and name != "sp_executesql":
            raise SqlError((message(2812, node.procedure, state=62, line=node.line),))
        values = [(argument, self._one(value), output) for argument, value, output in node.arguments]
        if not values or not isinstance(values[0][1], str):
            raise SqlError((message(214, "@statement", "ntext/nchar/nvarchar", line=node.line),))
        if self._nested == _MOST_NESTED:
            raise SqlError((message(217, _MOST_NESTED, line=node.line),))
        declared = str(values[1][1] or "") if len(values) > 1 else ""
        types, given, outputs = _bound(declared, values[2:], node.line)
        outer, database = (self._types, self._values), self.database
        self._types, self._values = types, given
        self._nested += 1
        try:
            self._text(values[0][1])
        finally:
            inside = self._values
            self._types, self._values = outer
            self._nested -= 1
            self.database = database  # USE lasts as long as the text
        for name, variable in outputs:
            self._values[variable] = convert(inside[name], self._types[variable])

    def _change(self, node: Execute) -> None:
        """The stand-in's own procedure: changes pages of a synthetic database, so that there is something to back up.

        `EXEC [database..]vdi_ext_change [[@page =] first] [, [@pages =] how many]`.
        """
        given = {"@page": 0, "@pages": EXTENT_PAGES}
        for place, (name, value, _) in enumerate(node.arguments):
            if place >= len(given):
                raise SqlError((message(8144, CHANGE, line=node.line),))
            name = name or list(given)[place]
            if name not in given:
                raise SqlError((message(8145, name, CHANGE, line=node.line),))
            number = convert(self._one(value), SqlType("int"))
            if not isinstance(number, int):
                raise SqlError((message(214, name, "int", line=node.line),))
            given[name] = number
        before, _, _ = node.procedure.rpartition(".")
        database = before.split(".")[-2] if "." in before else ""
        try:
            self._engine.change(database or self.database, given["@page"], given["@pages"])
        except DatabaseError as error:
            raise SqlError((message(error.number, *error.args[1:], line=node.line),)) from None
        except ValueError as error:
            raise SqlError((Message(50000, 16, 1, f"{error}.", node.line),)) from None
        self.error, self.row_count = 0, given["@pages"]
        self._done(given["@pages"])

    # ---- BACKUP and RESTORE

    def _backup_or_restore(self, draft: Draft) -> None:
        if "FMTONLY" in self._switches:
            self._done(None)
            return
        if self.transactions:
            raise SqlError((message(3021, state=0, line=draft.line), message(3013, draft.operation, line=draft.line)))
        statement = draft.bind(self._values)
        request = Request(draft.operation[:16] if draft.kind.endswith("ONLY") else draft.operation)

        def started(execution: Execution) -> None:
            execution.session = self
            with self._lock:
                request.execution = execution
                self.request = request
                cancelled = self._cancelled.is_set()
            if cancelled:
                execution.cancel()

        def tell(entry: Message) -> None:
            self._say(dataclasses.replace(entry, line=draft.line))

        result = None
        try:
            result = self._engine.execute(statement, tell, started)
        except SqlError:
            pass  # told as it happened
        else:
            self.error = 0
        if result is None or not result.columns:
            self._done(None)
            return
        self._sink.columns(result.columns)
        for row in result.rows:
            self._sink.row(row)
        self.row_count = len(result.rows)
        self._done(self.row_count)


def _bound(
    declared: str, given: list[tuple[str, object, str]], line: int
) -> tuple[dict[str, SqlType], dict[str, object], list[tuple[str, str]]]:
    """Types and values of sp_executesql's parameters, and which variables get which of them back."""
    declarations = parse_declarations(declared)
    types = {name: type_ for name, type_, _ in declarations}
    values: dict[str, object] = {}
    outputs: list[tuple[str, str]] = []
    if len(given) > len(declarations):
        raise SqlError((message(8144, "sp_executesql", line=line),))
    for place, (name, value, output) in enumerate(given):
        name = name or declarations[place][0]
        if name not in types:
            raise SqlError((message(8145, name, "sp_executesql", line=line),))
        values[name] = convert(value, types[name])
        if output:
            outputs.append((name, output))
    for name in types:
        if name not in values:
            raise SqlError((message(8178, declared[:4000], name, line=line),))
    return types, values, outputs
