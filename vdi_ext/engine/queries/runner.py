"""Running compiled queries: a SQLite database in memory that holds what the query reads, and lives as long as it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping

from ..messages import SqlError
from ..types import SqlType
from . import system
from .compiled import Query, Variable
from .conversions import DATES, DECIMALS, INTEGERS, Raw, class_of, convert, failure, from_raw, to_raw
from .expressions import quote
from .functions import FUNCTIONS, dateadd, divide, like, remainder
from .system import Context
from .tables import TABLES

MOST_STEPS = 200_000_000  # of SQLite's machine, for one query
STEPS = 10_000  # between two looks at whether it is to end
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 4 << 20,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 1 << 20,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 1000,
}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}


class Cancelled(Exception):
    """The query was told to end."""


class Rows:
    """The rows of a query, each as Python values; a context manager.

    Parameters
    ----------
    query : Query
    context : Context
    variables : mapping of str to object
        Values by name.
    stopped : callable
        Whether to end; asked every now and then.

    Raises
    ------
    SqlError
        What the query means cannot be done.
    Cancelled
        It was told to end.
    """

    def __init__(
        self, query: Query, context: Context, variables: Mapping[str, object], stopped: Callable[[], bool]
    ) -> None:
        self._query = query
        self._context = context
        self._stopped = stopped
        self._steps = 0
        self._problem: SqlError | None = None
        self._values = [
            to_raw(variables[value.name] if isinstance(value, Variable) else value) for value in query.values
        ]
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def __iter__(self) -> Iterator[tuple[object, ...]]:
        connection = self._connection
        for limit, most in _LIMITS.items():
            connection.setlimit(limit, most)
        connection.create_collation("LSN", _compare_numbers)
        self._register()
        with self._explained():
            self._fill()
            connection.set_authorizer(_authorize)
            connection.set_progress_handler(self._step, STEPS)
            cursor = connection.execute(self._query.sql, self._values)
        types = [column.type for column in self._query.columns]
        while True:
            with self._explained():
                row = cursor.fetchone()
            if row is None:
                return
            yield tuple(from_raw(type_, raw) for type_, raw in zip(types, row, strict=True))

    # ---- what may go wrong

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OverflowError, UnicodeError) as error:
            if self._problem is not None:
                raise self._problem from None
            if self._stopped():
                raise Cancelled from None
            if self._steps * STEPS >= MOST_STEPS or "too big" in str(error):
                raise failure(8623) from None
            if "deep" in str(error) or "too large" in str(error) or "overflow" in str(error):
                raise failure(191) from None
            raise failure(8180, str(error)) from None

    def _step(self) -> int:
        self._steps += 1
        return int(self._stopped() or self._steps * STEPS >= MOST_STEPS)

    # ---- functions

    def _register(self) -> None:
        connection, context = self._connection, self._context
        for name, function in FUNCTIONS.items():
            connection.create_function(f"f_{name}", -1, self._guarded(function.call))
        for name, function in system.FUNCTIONS.items():
            connection.create_function(f"f_{name}", -1, self._guarded(_with(context, function.call)))
        for name, call in (
            ("divide", divide), ("remainder", remainder), ("like", like), ("xor", _xor), ("dateadd", _null(dateadd)),
            ("global", _with(context, system.global_value)), ("convert", self._convert), ("try", self._try),
        ):  # fmt: skip
            connection.create_function(f"f_{name}", -1, self._guarded(call))

    def _guarded(self, call: Callable[..., Raw]) -> Callable[..., Raw]:
        """SQLite forgets what was raised."""

        def guarded(*values: Raw) -> Raw:
            try:
                return call(*values)
            except SqlError as error:
                self._problem = error
                raise
            except (ValueError, TypeError, OverflowError, ArithmeticError):
                self._problem = failure(8115, "expression", "int", state=2)
                raise

        return guarded

    def _convert(self, raw: Raw, source: Raw, target: Raw, style: Raw) -> Raw:
        types = self._query.types
        kind: SqlType | None = types[source]  # type: ignore[index]
        wanted: SqlType | None = types[target]  # type: ignore[index]
        if raw is None or wanted is None:
            return raw
        return to_raw(convert(from_raw(kind, raw), wanted, int(style or 0)))

    def _try(self, raw: Raw, source: Raw, target: Raw, style: Raw) -> Raw:
        try:
            return self._convert(raw, source, target, style)
        except SqlError:
            return None

    # ---- tables

    def _fill(self) -> None:
        for name in sorted(self._query.tables):
            table = TABLES[name]
            columns = ", ".join(f"{quote(column.name)} {_affinity(column.type)}" for column in table.columns)
            self._connection.execute(f"CREATE TABLE {quote(name)} ({columns})")
            places = ", ".join("?" * len(table.columns))
            rows = ([to_raw(row.get(column.name)) for column in table.columns] for row in table.rows(self._context))
            self._connection.executemany(f"INSERT INTO {quote(name)} VALUES ({places})", rows)


def _affinity(type_: SqlType) -> str:
    if type_.name in INTEGERS or type_.name == "bit":
        return "INTEGER"
    if type_.name in DECIMALS:
        return "TEXT COLLATE LSN" if type_.precision == 25 else "INTEGER"
    if class_of(type_) == "float":
        return "REAL"
    return "BLOB" if class_of(type_) == "binary" else "TEXT" if type_.name in DATES else "TEXT COLLATE NOCASE"


def _compare_numbers(left: str, right: str) -> int:
    """Whole numbers as text; what is none comes first."""
    a, b = (int(text) if text.isascii() and text.isdecimal() else -1 for text in (left, right))
    return (a > b) - (a < b)


def _authorize(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _with(context: Context, call: Callable[..., Raw]) -> Callable[..., Raw]:
    return lambda *values: call(context, *values)


def _null(call: Callable[..., Raw]) -> Callable[..., Raw]:
    return lambda *values: None if None in values else call(*values)


def _xor(left: Raw, right: Raw) -> Raw:
    return None if left is None or right is None else int(left) ^ int(right)
