"""BACKUP and RESTORE: from tokens to a draft, and from a draft with the values of variables to a statement.

Limits of values come from the T-SQL reference (section 4.2); which number SQL Server gives for which violation is
documented only by the texts of its messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import NoReturn, TypeAlias

from .dates import parse_date
from .options import ALLOWED, EXCLUSIVE, WORDS_REFUSED, not_in_edition, option, word_of
from .statement import DATES, NUMBERS, TEXTS, Statement
from .tokens import MAX_NAME, Cursor, Token, fail, tokenize

MAX_DEVICES = 64
MAX_TRANSFER_SIZE = 4 << 20
MAX_DESCRIPTION = 255

Variables = Mapping[str, object]  # by name with @, in lower case


@dataclass(frozen=True)
class Pair:
    """MOVE one TO the other, or a mark and the moment AFTER which it counts."""

    first: Token
    second: Token | None


Value: TypeAlias = bool | Token | Pair | None


@dataclass
class Draft:
    """A BACKUP or RESTORE as written: its values are tokens, variables among them.

    Parameters
    ----------
    verb, kind : str
    line : int
        Where it begins.
    """

    verb: str
    kind: str
    line: int
    database: Token | None = None
    files: list[Token] = field(default_factory=list)
    filegroups: list[Token] = field(default_factory=list)
    read_write_filegroups: bool = False
    devices: list[Token] = field(default_factory=list)
    options: list[tuple[str, Value]] = field(default_factory=list)

    @property
    def operation(self) -> str:
        return f"{self.verb} {self.kind}"

    def variables(self) -> Iterator[Token]:
        """The variables that it uses."""
        values: list[Value] = [self.database, *self.files, *self.filegroups, *self.devices]
        for _, value in self.options:
            values += [value.first, value.second] if isinstance(value, Pair) else [value]
        return (value for value in values if isinstance(value, Token) and value.kind == "variable")

    def bind(self, variables: Variables) -> Statement:
        """Put the variables' values in, and check everything.

        Raises
        ------
        SqlError
            With the number and text that SQL Server gives.
        """
        return _Binder(self, variables).statement()


def parse(sql: str, variables: Variables | None = None) -> Statement:
    """Parse one statement.

    Parameters
    ----------
    sql : str
    variables : mapping of str to object, optional
        Values by name, ``"@name"`` in lower case.

    Raises
    ------
    SqlError
        With the number and text that SQL Server gives.
    """
    cursor = Cursor(tokenize(sql))
    while cursor.take(";"):
        pass
    found = draft(cursor)
    while cursor.take(";"):
        pass
    if cursor.token.kind != "end":
        cursor.syntax()
    return found.bind(variables or {})


def draft(cursor: Cursor) -> Draft:
    """Parse the statement that begins here, and stop behind it."""
    return _Parser(cursor).draft()


_KINDS = {
    "BACKUP": ("DATABASE", "LOG"),
    "RESTORE": ("DATABASE", "LOG", "HEADERONLY", "FILELISTONLY", "LABELONLY", "VERIFYONLY"),
}
# Kinds of statement that SQL Server has besides.
_OTHER_KINDS = ("CERTIFICATE", "MASTER", "SERVICE", "GROUP", "SYMMETRIC", "REWINDONLY", "SERVER", "TRAN", "TRANSACTION")


class _Parser:
    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    def draft(self) -> Draft:
        cursor = self._cursor
        first = cursor.token
        verb = first.value.upper()
        if not cursor.take(*_KINDS):
            cursor.syntax()
        kind = cursor.token.value.upper()
        if not cursor.take(*_KINDS[verb]):
            if cursor.at(*_OTHER_KINDS):
                fail(3015, f"{verb} {kind}", line=first.line)
            cursor.syntax()
        self._draft = draft = Draft(verb, kind, first.line)
        if kind in ("DATABASE", "LOG"):
            draft.database = cursor.value("word", "name", "variable")
            self._parts()
        if verb == "BACKUP" or draft.database is None or cursor.at("FROM"):  # RESTORE alone only recovers
            cursor.expect("TO" if verb == "BACKUP" else "FROM")
            draft.devices.append(self._device())
        while draft.devices and cursor.take(","):
            draft.devices.append(self._device())
        if verb == "BACKUP" and cursor.take("MIRROR"):
            fail(3218, line=first.line)
        if cursor.take("WITH"):
            self._option()
            while cursor.take(","):
                self._option()
        return draft

    def _parts(self) -> None:
        """Files and filegroups."""
        cursor, draft = self._cursor, self._draft
        while cursor.at("FILE", "FILEGROUP", "READ_WRITE_FILEGROUPS", "PAGE"):
            word = cursor.next().value.upper()
            if word == "PAGE":
                fail(3032, "page", line=draft.line)
            if word == "READ_WRITE_FILEGROUPS":
                draft.read_write_filegroups = True
            else:
                cursor.expect("=")
                names = draft.files if word == "FILE" else draft.filegroups
                names.append(cursor.value("string", "variable"))
            if not cursor.take(","):
                return

    def _device(self) -> Token:
        cursor, draft = self._cursor, self._draft
        for word in ("DISK", "TAPE", "URL"):
            if cursor.at(word):
                fail(3015, f"{draft.verb} with a {word} device", line=draft.line)
        cursor.expect("VIRTUAL_DEVICE")
        cursor.expect("=")
        return cursor.value("string", "variable")

    def _option(self) -> None:
        cursor, draft = self._cursor, self._draft
        token = cursor.token
        if token.kind != "word":
            cursor.syntax()
        word = token.value.upper()
        if word in WORDS_REFUSED[draft.verb]:
            fail(3032, word.lower(), line=draft.line)
        if word == "ENCRYPTION" and draft.verb == "BACKUP":
            not_in_edition(draft.operation, "ENCRYPTION", draft.line)
        found = option(draft.verb, word)
        if found is None:
            cursor.value("word")  # a keyword is a syntax error
            fail(155, token.value, draft.verb, line=token.line)
        cursor.next()
        name, on = found
        if name == "moves":
            logical = cursor.value("string", "variable")
            cursor.expect("TO")
            draft.options.append((name, Pair(logical, cursor.value("string", "variable"))))
        elif on is not None:
            draft.options.append((name, on))
        elif name == "stats" and not cursor.at("="):
            draft.options.append((name, None))
        else:
            cursor.expect("=")
            value = cursor.value(*(("number", "variable") if name in NUMBERS else ("string", "variable")))
            if name in NUMBERS and value.kind == "number" and not (value.text.isdecimal() and value.text.isascii()):
                cursor.place -= 1
                cursor.syntax()
            marked = name in ("stop_at_mark", "stop_before_mark")
            after = cursor.value("string", "variable") if marked and cursor.take("AFTER") else None
            draft.options.append((name, Pair(value, after) if marked else value))


class _Binder:
    def __init__(self, draft: Draft, variables: Variables) -> None:
        self._draft = draft
        self._variables = variables
        self._given: dict[str, object] = {}

    def _fail(self, number: int, *values: object, state: int = 1) -> NoReturn:
        fail(number, *values, state=state, line=self._draft.line)

    def statement(self) -> Statement:
        draft = self._draft
        database = self._text(draft.database) if draft.database is not None else ""
        if database is None or len(database) > MAX_NAME:
            self._fail(911, (database or "")[:MAX_NAME])
        if draft.database is not None and not database:
            self._fail(1038, state=4)
        devices = tuple(map(self._device, draft.devices))
        if len(devices) > MAX_DEVICES:
            self._fail(3205, MAX_DEVICES, state=2)
        if len(set(devices)) < len(devices):
            # The interface wants names that are unique within the set (section 4.4).
            self._fail(3261)
        for name, value in draft.options:
            self._take(name, value)
        self._exclude()
        if self._given.get("differential"):
            self._given.pop("copy_only", None)
        return Statement(
            draft.verb, database, devices, kind=draft.kind,
            files=tuple(self._wanted(token, "FILE") for token in draft.files),
            filegroups=tuple(self._wanted(token, "FILEGROUP") for token in draft.filegroups),
            read_write_filegroups=draft.read_write_filegroups, **self._given,  # type: ignore[arg-type]
        )  # fmt: skip

    # ---- values

    def _value(self, token: Token) -> object:
        if token.kind != "variable":
            return token.value
        try:
            return self._variables[token.value.lower()]
        except KeyError:
            fail(137, token.value, state=2, line=token.line)

    def _text(self, token: Token) -> str | None:
        value = self._value(token)
        return value if value is None or isinstance(value, str) else str(value)

    def _wanted(self, token: Token, word: str, most: int | None = None) -> str:
        text = self._text(token)
        if text is None:
            self._fail(3217, word)
        if most is not None and len(text) > most:
            fail(103, "character string", text[:MAX_NAME], most, line=token.line)
        return text

    def _device(self, token: Token) -> str:
        name = self._text(token)
        if not name:
            self._fail(3044)
        if len(name) > MAX_NAME:
            self._fail(3057, MAX_NAME)
        return name

    def _number(self, token: Token, word: str) -> int:
        value = self._value(token)
        text = format(value, "f") if isinstance(value, Decimal) else str(value).strip()
        if value is None or not text.isascii() or not text.lstrip("-").isdecimal():
            self._fail(3217, word)
        if len(text) > 10:  # beyond any limit, and not worth converting
            self._fail(3250, text, word)
        return int(text)

    def _date(self, token: Token) -> datetime:
        value = self._value(token)
        moment = value if isinstance(value, datetime) else parse_date(str(value))
        if moment is None:
            self._fail(241)
        return moment.replace(tzinfo=None)

    # ---- options

    def _take(self, name: str, value: Value) -> None:
        draft = self._draft
        if name not in ALLOWED[draft.operation]:
            self._fail(3032, word_of(name, value))
        if name == "moves":
            assert isinstance(value, Pair) and value.second is not None
            move = (self._wanted(value.first, "MOVE"), self._wanted(value.second, "MOVE"))
            self._given["moves"] = (*self._given.get("moves", ()), move)  # type: ignore[misc]
            return
        if name in self._given:
            self._fail(3031, word_of(name, value), word_of(name, self._given[name]))
        if isinstance(value, Pair):
            if value.second is not None:
                self._given["stop_after"] = self._date(value.second)
            value = value.first
        self._given[name] = self._converted(name, value)

    def _converted(self, name: str, value: bool | Token | None) -> object:
        if isinstance(value, bool):
            return value
        if value is None:
            return 10  # STATS alone
        if name in TEXTS:
            short = {"name": MAX_NAME, "media_name": MAX_NAME, "description": MAX_DESCRIPTION,
                     "media_description": MAX_DESCRIPTION}  # fmt: skip
            return self._wanted(value, TEXTS[name], short.get(name))
        if name in DATES:
            return self._date(value)
        word = NUMBERS[name]
        number = self._number(value, word)
        if name == "block_size":
            if number & (number - 1):
                self._fail(3253)
            return self._between(number, 512, 65536, word)
        if name == "max_transfer_size":
            if self._between(number, 1, MAX_TRANSFER_SIZE, word) % 65536:
                self._fail(3217, word)
            return number
        limits = {"stats": (1, 100), "retain_days": (0, 99999), "file": (1, 0x7FFFFFFF)}
        return self._between(number, *limits.get(name, (1, 0x7FFFFFFF)), word)

    def _between(self, value: int, least: int, most: int, word: str) -> int:
        if not least <= value <= most:
            self._fail(3250, value, word)
        return value

    def _exclude(self) -> None:
        """Options that contradict each other."""
        given = self._given
        for names in EXCLUSIVE:
            found = [name for name in names if name in given]
            if len(found) > 1:
                self._fail(3031, word_of(found[1], given[found[1]]), word_of(found[0], given[found[0]]))
        if given.get("format"):  # a new medium: nothing is kept, nothing is looked at
            for name in ("init", "skip"):
                if given.get(name) is False:
                    self._fail(3031, "format", word_of(name, False))
