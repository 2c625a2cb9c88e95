"""Batches: the statements that sessions send besides BACKUP and RESTORE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .parser import Draft, draft
from .tokens import Cursor, fail, tokenize


@dataclass(frozen=True)
class SetOption:
    """SET of something that is no variable; `on` is None where it takes no ON or OFF."""

    line: int
    name: str
    on: bool | None


@dataclass(frozen=True)
class Use:
    line: int
    database: str


@dataclass(frozen=True)
class Transaction:
    """`action` is ``"BEGIN"``, ``"COMMIT"``, ``"ROLLBACK"`` or ``"SAVE"``."""

    line: int
    action: str


Node: TypeAlias = Draft | SetOption | Use | Transaction


def parse_batch(text: str) -> list[Node]:
    """Parse a batch.

    Raises
    ------
    SqlError
        Nothing of it may be executed then.
    """
    return _Batch(Cursor(tokenize(text))).nodes()


_ON_OFF = frozenset("""
    ANSI_DEFAULTS ANSI_NULLS ANSI_NULL_DFLT_OFF ANSI_NULL_DFLT_ON ANSI_PADDING ANSI_WARNINGS ARITHABORT ARITHIGNORE
    CONCAT_NULL_YIELDS_NULL CURSOR_CLOSE_ON_COMMIT FMTONLY IMPLICIT_TRANSACTIONS NOCOUNT NOEXEC NUMERIC_ROUNDABORT
    PARSEONLY QUOTED_IDENTIFIER REMOTE_PROC_TRANSACTIONS XACT_ABORT
""".split())
_VALUED = frozenset({"TEXTSIZE", "LOCK_TIMEOUT", "ROWCOUNT", "DATEFIRST", "DATEFORMAT", "LANGUAGE",
                     "DEADLOCK_PRIORITY", "CONTEXT_INFO"})  # fmt: skip
_LEVELS = (("READ", "UNCOMMITTED"), ("READ", "COMMITTED"), ("REPEATABLE", "READ"), ("SNAPSHOT",), ("SERIALIZABLE",))


class _Batch:
    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def nodes(self) -> list[Node]:
        cursor, nodes = self._cursor, []
        while True:
            while cursor.take(";"):
                pass
            if cursor.token.kind == "end":
                return nodes
            nodes.append(self._node())

    def _node(self) -> Node:
        cursor = self._cursor
        token = cursor.token
        if cursor.at("BACKUP", "RESTORE"):
            return draft(cursor)
        if cursor.take("SET"):
            return self._set(token.line)
        if cursor.take("USE"):
            return Use(token.line, cursor.value("word", "name").value)
        if cursor.at("BEGIN", "COMMIT", "ROLLBACK", "SAVE"):
            return self._transaction()
        cursor.syntax()

    def _set(self, line: int) -> SetOption:
        cursor = self._cursor
        if cursor.take("TRANSACTION"):
            cursor.expect("ISOLATION")
            cursor.expect("LEVEL")
            for level in _LEVELS:
                if cursor.at(level[0]) and (len(level) == 1 or cursor.peek().value.upper() == level[1]):
                    cursor.place += len(level)
                    return SetOption(line, "TRANSACTION ISOLATION LEVEL", None)
            cursor.syntax()
        names = [cursor.next()]
        word = names[0].value.upper()
        if word in _VALUED:
            cursor.take("-")
            cursor.value("number", "word", "string", "variable", "binary")
            return SetOption(line, word, None)
        while cursor.take(","):
            names.append(cursor.next())
        if word == "STATISTICS":
            cursor.next()
        elif unknown := [name for name in names if name.value.upper() not in _ON_OFF]:
            fail(195, unknown[0].value, "SET option", line=line)
        on = cursor.at("ON")
        cursor.expect("ON", "OFF")
        return SetOption(line, word, on)

    def _transaction(self) -> Transaction:
        cursor = self._cursor
        token = cursor.next()
        action = token.value.upper()
        short = cursor.take("TRAN", "TRANSACTION")
        if not short and action in ("BEGIN", "SAVE"):
            cursor.syntax()
        if not short:
            cursor.take("WORK")
        elif cursor.token.kind in ("word", "name", "variable") and not cursor.at(*_STARTS):
            cursor.value("word", "name", "variable")
        return Transaction(token.line, action)


_STARTS = frozenset("""
    BACKUP RESTORE SET USE BEGIN COMMIT ROLLBACK SAVE SELECT DECLARE PRINT RAISERROR IF ELSE END EXEC EXECUTE KILL
""".split())
