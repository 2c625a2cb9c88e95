"""Batches: the statements that sessions send, parsed and compiled before any of them runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from .queries import Compiler, Query
from .tsql.parser import Draft, draft
from .tsql.tokens import Cursor, Token, fail, is_keyword, tokenize
from .tsql.types import parse_type
from .types import SqlType

MOST_BLOCKS = 32  # IF and BEGIN within one another


@dataclass(frozen=True)
class SetOption:
    """SET of something that is no variable; `on` is None where it takes no ON or OFF."""

    line: int
    names: tuple[str, ...]
    on: bool | None
    value: str = ""


@dataclass(frozen=True)
class Use:
    line: int
    database: str


@dataclass(frozen=True)
class Transaction:
    """`action` is ``"BEGIN"``, ``"COMMIT"``, ``"ROLLBACK"`` or ``"SAVE"``."""

    line: int
    action: str


@dataclass(frozen=True)
class SetRecovery:
    """ALTER DATABASE ... SET RECOVERY; `database` is empty for the current one."""

    line: int
    database: str
    model: str


@dataclass(frozen=True)
class Declare:
    line: int
    name: str
    type: SqlType
    value: Query | None


@dataclass(frozen=True)
class Assign:
    line: int
    name: str
    value: Query


@dataclass(frozen=True)
class Select:
    line: int
    query: Query


@dataclass(frozen=True)
class Print:
    line: int
    value: Query


@dataclass(frozen=True)
class Raise:
    """RAISERROR: text, severity, state, and what the text is filled with."""

    line: int
    values: tuple[Query, ...]


@dataclass(frozen=True)
class If:
    line: int
    test: Query
    then: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True)
class Kill:
    line: int
    spid: Query
    status_only: bool


@dataclass(frozen=True)
class Wait:
    line: int
    time: Query


@dataclass(frozen=True)
class Execute:
    """EXEC of a procedure with arguments by name (else empty), or of a text, which has no procedure."""

    line: int
    procedure: str
    arguments: tuple[tuple[str, Query, str], ...]  # name, value, variable of OUTPUT


Node: TypeAlias = (
    Draft | SetOption | SetRecovery | Use | Transaction | Declare | Assign | Select | Print | Raise | If | Kill | Wait
    | Execute
)


def parse_batch(text: str, variables: Mapping[str, SqlType], database: str) -> list[Node]:
    """Parse a batch.

    Parameters
    ----------
    text : str
    variables : mapping of str to SqlType
        Parameters that it is given, by name in lower case.
    database : str
        Current where it begins.

    Raises
    ------
    SqlError
        Nothing of it may be executed then.
    """
    return _Batch(Cursor(tokenize(text)), variables, database).nodes()


def parse_declarations(text: str) -> list[tuple[str, SqlType, bool]]:
    """`@a int, @b nvarchar(10) OUTPUT`: names in lower case, types, and which are given back. Raises `SqlError`."""
    cursor = Cursor(tokenize(text))
    found: list[tuple[str, SqlType, bool]] = []
    while cursor.token.kind != "end":
        name = cursor.value("variable")
        cursor.take("AS")
        type_ = parse_type(cursor)
        if any(name.value.lower() == other for other, _, _ in found):
            fail(134, name.value, line=name.line)
        found.append((name.value.lower(), type_, cursor.take("OUTPUT", "OUT")))
        if cursor.token.kind != "end":
            cursor.expect(",")
    return found


_ON_OFF = frozenset(
    """
    ANSI_DEFAULTS ANSI_NULLS ANSI_NULL_DFLT_OFF ANSI_NULL_DFLT_ON ANSI_PADDING ANSI_WARNINGS ARITHABORT ARITHIGNORE
    CONCAT_NULL_YIELDS_NULL CURSOR_CLOSE_ON_COMMIT FMTONLY IMPLICIT_TRANSACTIONS NOCOUNT NOEXEC NO_BROWSETABLE
    NUMERIC_ROUNDABORT PARSEONLY QUOTED_IDENTIFIER REMOTE_PROC_TRANSACTIONS XACT_ABORT
""".split()
)
_VALUED = frozenset({"TEXTSIZE", "LOCK_TIMEOUT", "ROWCOUNT", "DATEFIRST", "DATEFORMAT", "LANGUAGE",
                     "DEADLOCK_PRIORITY", "CONTEXT_INFO", "QUERY_GOVERNOR_COST_LIMIT"})  # fmt: skip
_LEVELS = (("READ", "UNCOMMITTED"), ("READ", "COMMITTED"), ("REPEATABLE", "READ"), ("SNAPSHOT",), ("SERIALIZABLE",))
# Statements of SQL Server that are none here, by the word that they begin with.
_FOREIGN = frozenset(
    """
    ADD ALTER BREAK BULK CHECKPOINT CLOSE CONTINUE CREATE DBCC DEALLOCATE DELETE DENY DISABLE DROP ENABLE FETCH GOTO
    GRANT INSERT MERGE MOVE OPEN READTEXT RECONFIGURE RETURN REVERT REVOKE SEND SETUSER SHUTDOWN THROW TRUNCATE UPDATE
    UPDATETEXT WHILE WRITETEXT
""".split()
)


class _Batch:
    def __init__(self, cursor: Cursor, variables: Mapping[str, SqlType], database: str) -> None:
        self._cursor = cursor
        self._variables = dict(variables)
        self._database = database
        self._blocks = 0

    def nodes(self) -> list[Node]:
        cursor = self._cursor
        self._skip()
        found: list[Node] = []
        if self._is_call():
            found.append(self._call(cursor.token.line))
            self._skip()
        while cursor.token.kind != "end":
            found += self._statement()
            self._skip()
        return found

    def _skip(self) -> None:
        while self._cursor.take(";"):
            pass

    def _is_call(self) -> bool:
        """Whether the batch begins with the name of a procedure."""
        token = self._cursor.token
        return token.kind == "name" or (
            token.kind == "word" and not is_keyword(token) and token.value.upper() not in _FOREIGN
        )

    # ---- statements

    def _statement(self) -> list[Node]:
        """One statement, or the statements of a block."""
        cursor = self._cursor
        token = cursor.token
        word = token.value.upper() if token.kind == "word" else ""
        if word == "BEGIN" and cursor.peek().value.upper() not in ("TRAN", "TRANSACTION", "DISTRIBUTED"):
            return self._block()
        return [self._single(token, word)]

    def _block(self) -> list[Node]:
        cursor = self._cursor
        token = cursor.next()
        if cursor.at("TRY", "CATCH", "DIALOG", "CONVERSATION", "ATOMIC"):
            fail(3015, f"BEGIN {cursor.token.value.upper()}", line=token.line)
        found: list[Node] = []
        self._deeper(token)
        while True:
            self._skip()
            if cursor.take("END"):
                break
            if cursor.token.kind == "end":
                cursor.syntax()
            found += self._statement()
        self._blocks -= 1
        if not found:
            fail(102, "END", line=token.line)
        return found

    def _deeper(self, token: Token) -> None:
        self._blocks += 1
        if self._blocks > MOST_BLOCKS:
            fail(191, line=token.line)

    def _single(self, token: Token, word: str) -> Node:
        cursor = self._cursor
        if word in ("BACKUP", "RESTORE"):
            found = draft(cursor)
            for variable in found.variables():
                if variable.value.lower() not in self._variables:
                    fail(137, variable.value, state=2, line=variable.line)
            return found
        if word in ("SELECT", "WITH") or token.text == "(":
            return Select(token.line, self._compiler().select())
        if word in ("COMMIT", "ROLLBACK", "SAVE", "BEGIN"):
            return self._transaction()
        if word == "ALTER" and cursor.peek().value.upper() == "DATABASE":
            return self._alter_database(token)
        if word in _FOREIGN:
            fail(3015, self._named(token), line=token.line)
        parse = {
            "SET": self._set, "USE": self._use, "DECLARE": self._declare, "PRINT": self._print, "IF": self._if,
            "RAISERROR": self._raise, "EXEC": self._execute, "EXECUTE": self._execute, "KILL": self._kill,
            "WAITFOR": self._wait,
        }.get(word)  # fmt: skip
        if parse is None:
            cursor.syntax()
        cursor.next()
        return parse(token.line)

    def _alter_database(self, token: Token) -> SetRecovery:
        """Of all that can be altered, the recovery model."""
        cursor = self._cursor
        cursor.place += 2
        name = cursor.next().value if cursor.at("CURRENT") else cursor.value("word", "name").value
        if not (cursor.at("SET") and cursor.peek().value.upper() == "RECOVERY"):
            words = cursor.token.value.upper(), cursor.peek().value.upper()
            fail(3015, " ".join(("ALTER DATABASE", *words)).strip(), line=token.line)
        cursor.place += 2
        model = cursor.token.value.upper()
        cursor.expect("FULL", "SIMPLE", "BULK_LOGGED")
        if cursor.take("WITH"):
            cursor.expect("NO_WAIT")
        return SetRecovery(token.line, "" if name.upper() == "CURRENT" else name, model)

    def _named(self, token: Token) -> str:
        """A statement by its first words."""
        then = self._cursor.peek()
        return f"{token.value.upper()} {then.value.upper()}" if then.kind == "word" else token.value.upper()

    def _compiler(self) -> Compiler:
        return Compiler(self._cursor, self._variables, self._database)

    def _value(self) -> Query:
        return self._compiler().expression()

    def _use(self, line: int) -> Use:
        self._database = self._cursor.value("word", "name").value
        return Use(line, self._database)

    def _print(self, line: int) -> Print:
        return Print(line, self._value())

    def _transaction(self) -> Transaction:
        cursor = self._cursor
        token = cursor.next()
        action = token.value.upper()
        short = cursor.take("TRAN", "TRANSACTION")
        if not short and action in ("BEGIN", "SAVE"):
            cursor.syntax()
        if not short:
            cursor.take("WORK")
        elif cursor.token.kind in ("name", "variable", "word") and not is_keyword(cursor.token):
            cursor.next()
            if action == "BEGIN" and cursor.at("WITH"):
                cursor.next()
                cursor.expect("MARK")
                if cursor.token.kind == "string":
                    cursor.next()
        return Transaction(token.line, action)

    def _declare(self, line: int) -> Node:
        cursor = self._cursor
        name = cursor.value("variable")
        cursor.take("AS")
        if cursor.at("TABLE", "CURSOR"):
            fail(3015, f"DECLARE of a {cursor.token.value.lower()}", line=line)
        type_ = parse_type(cursor)
        if name.value.lower() in self._variables or name.value.startswith("@@"):
            fail(134, name.value, line=name.line)
        value = self._value() if cursor.take("=") else None
        self._variables[name.value.lower()] = type_
        found = Declare(line, name.value.lower(), type_, value)
        if cursor.take(","):  # as if it were a statement of its own
            cursor.place -= 1
            cursor.tokens[cursor.place] = Token("word", "DECLARE", ",", line)
        return found

    def _if(self, line: int) -> If:
        cursor = self._cursor
        self._deeper(cursor.token)
        test = self._compiler().test()
        self._skip()
        then = self._branch()
        place = cursor.place
        self._skip()
        otherwise: list[Node] = []
        if cursor.take("ELSE"):
            otherwise = self._branch()
        else:
            cursor.place = place
        self._blocks -= 1
        return If(line, test, tuple(then), tuple(otherwise))

    def _branch(self) -> list[Node]:
        if self._cursor.token.kind == "end":
            self._cursor.syntax()
        return self._statement()

    def _raise(self, line: int) -> Raise:
        cursor = self._cursor
        cursor.expect("(")
        values = [self._value()]
        while cursor.take(","):
            values.append(self._value())
        cursor.expect(")")
        if len(values) < 3:
            cursor.place -= 1
            cursor.syntax()
        if cursor.take("WITH"):
            while True:
                cursor.expect("NOWAIT", "LOG", "SETERROR")
                if not cursor.take(","):
                    break
        return Raise(line, tuple(values))

    def _kill(self, line: int) -> Kill:
        spid = self._value()
        status_only = self._cursor.take("WITH")
        if status_only:
            self._cursor.expect("STATUSONLY")
        return Kill(line, spid, status_only)

    def _wait(self, line: int) -> Wait:
        if not self._cursor.take("DELAY"):
            fail(3015, f"WAITFOR {self._cursor.token.value.upper()}".strip(), line=line)
        return Wait(line, self._value())

    # ---- SET

    def _set(self, line: int) -> SetOption | Assign:
        cursor = self._cursor
        if cursor.token.kind == "variable":
            return self._assign(line)
        if cursor.take("TRANSACTION"):
            cursor.expect("ISOLATION")
            cursor.expect("LEVEL")
            for level in _LEVELS:
                if cursor.at(level[0]) and (len(level) == 1 or cursor.peek().value.upper() == level[1]):
                    cursor.place += len(level)
                    return SetOption(line, ("TRANSACTION ISOLATION LEVEL",), None)
            cursor.syntax()
        names = [cursor.next()]
        word = names[0].value.upper()
        if word in _VALUED:
            cursor.take("-")
            value = cursor.value("number", "word", "name", "string", "variable", "binary")
            return SetOption(line, (word,), None, value.value)
        while cursor.take(","):
            names.append(cursor.next())
        if word == "STATISTICS":
            cursor.next()
        elif unknown := [name for name in names if name.value.upper() not in _ON_OFF]:
            if unknown[0].kind != "word":
                cursor.place -= 1
                cursor.syntax()
            fail(195, unknown[0].value, "SET option", line=unknown[0].line)
        on = cursor.at("ON")
        cursor.expect("ON", "OFF")
        return SetOption(line, tuple(name.value.upper() for name in names), on)

    def _assign(self, line: int) -> Assign:
        cursor = self._cursor
        name = cursor.next()
        if name.value.lower() not in self._variables:
            fail(137, name.value, line=name.line)
        operator = cursor.token
        if operator.text in ("+=", "-=", "*=", "/="):
            # SET @a += b is SET @a = @a + b; the tokens say so from here on.
            cursor.tokens[cursor.place - 1 : cursor.place + 1] = [
                Token("symbol", "=", "=", line), name, Token("symbol", operator.text[0], operator.text[0], line),
            ]  # fmt: skip
            cursor.place -= 1
        cursor.expect("=")
        return Assign(line, name.value.lower(), self._value())

    # ---- EXEC

    def _execute(self, line: int) -> Execute:
        cursor = self._cursor
        if cursor.take("("):
            text = self._value()
            cursor.expect(")")
            return Execute(line, "", (("", text, ""),))
        if cursor.token.kind == "variable" and cursor.peek().text == "=":
            fail(3015, "EXEC with a returned status", line=line)
        return self._call(line)

    def _call(self, line: int) -> Execute:
        cursor = self._cursor
        parts = [cursor.value("word", "name").value]
        while cursor.take("."):
            parts.append("" if cursor.at(".") else cursor.value("word", "name").value)
        arguments: list[tuple[str, Query, str]] = []
        while self._begins_argument():
            arguments.append(self._argument())
            if not cursor.take(","):
                break
        return Execute(line, ".".join(parts), tuple(arguments))

    def _begins_argument(self) -> bool:
        token = self._cursor.token
        return (
            token.kind in ("string", "number", "binary", "variable", "name")
            or token.text == "-"
            or (token.kind == "word" and (not is_keyword(token) or token.value.upper() == "NULL"))
        )

    def _argument(self) -> tuple[str, Query, str]:
        cursor = self._cursor
        name = ""
        if cursor.token.kind == "variable" and cursor.peek().text == "=":
            name = cursor.next().value.lower()
            cursor.next()
        token = cursor.token
        if token.kind in ("word", "name") and token.value.upper() != "NULL":  # a bare word is a text
            cursor.tokens[cursor.place] = Token("string", token.value, f"N'{token.text}'", token.line)
        value = self._value()
        output = token.value.lower() if token.kind == "variable" and cursor.take("OUTPUT", "OUT") else ""
        return name, value, output
