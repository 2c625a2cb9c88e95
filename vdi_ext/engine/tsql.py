"""T-SQL: a tokenizer, and a parser for BACKUP DATABASE and RESTORE DATABASE with virtual devices.

An error names the token that it was found at; at the end of the text, the last one. Options that SQL Server has and the
stand-in cannot honour are refused with message 3032, words that are no options with 155, and statements that it has
and the stand-in has not with 3015: nothing is ignored. Limits of values come from the T-SQL reference (section 4.2);
which number SQL Server gives for which violation is documented only by the texts of its messages.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from .messages import Message, SqlError, message

MAX_NAME = 128
MAX_DEVICES = 64
MAX_TRANSFER_SIZE = 4 << 20


class Token(NamedTuple):
    """A piece of the text.

    Parameters
    ----------
    kind : str
        ``"word"``, ``"name"`` (delimited), ``"string"``, ``"number"``, ``"symbol"`` or ``"end"``.
    value : str
        Without delimiters.
    text : str
        As written.
    """

    kind: str
    value: str
    text: str


@dataclass(frozen=True)
class Statement:
    """A BACKUP or RESTORE of a database.

    Parameters
    ----------
    verb : str
        ``"BACKUP"`` or ``"RESTORE"``.
    database : str
    devices : tuple of str
        Names of the virtual devices; the first is the name of the set.
    block_size, buffer_count, max_transfer_size : int or None
        Bytes, number, bytes; None where not given.
    stats : int or None
        Percent between two progress messages.
    checksum : bool or None
        CHECKSUM, NO_CHECKSUM, or neither.
    copy_only, format, replace : bool
    """

    verb: str
    database: str
    devices: tuple[str, ...]
    block_size: int | None = None
    buffer_count: int | None = None
    max_transfer_size: int | None = None
    stats: int | None = None
    checksum: bool | None = None
    copy_only: bool = False
    format: bool = False
    replace: bool = False

    @property
    def operation(self) -> str:
        return f"{self.verb} DATABASE"

    def to_sql(self) -> str:
        """The statement as text that parses to it again."""
        devices = ", ".join(f"VIRTUAL_DEVICE = {quote_string(name)}" for name in self.devices)
        options = [
            f"{word} = {value}"
            for word, value in (
                ("BLOCKSIZE", self.block_size),
                ("BUFFERCOUNT", self.buffer_count),
                ("MAXTRANSFERSIZE", self.max_transfer_size),
                ("STATS", self.stats),
            )
            if value is not None
        ]
        if self.checksum is not None:
            options.append("CHECKSUM" if self.checksum else "NO_CHECKSUM")
        options += [word for word, on in (
            ("COPY_ONLY", self.copy_only), ("FORMAT", self.format), ("REPLACE", self.replace),
        ) if on]  # fmt: skip
        joint = "TO" if self.verb == "BACKUP" else "FROM"
        text = f"{self.operation} {quote_name(self.database)} {joint} {devices}"
        return f"{text} WITH {', '.join(options)}" if options else text


def quote_name(name: str) -> str:
    """A name in brackets."""
    return f"[{name.replace(']', ']]')}]"


def quote_string(text: str) -> str:
    """A Unicode string literal."""
    return f"N'{text.replace(chr(39), chr(39) * 2)}'"


# ---- tokens

_SPACE = re.compile(r"[\s\ufeff]+")
_LINE_COMMENT = re.compile(r"--[^\n]*")
_COMMENT_MARK = re.compile(r"/\*|\*/")
_WORD = re.compile(r"[^\W\d][\w@#$]*|#[\w@#$]*")
_VARIABLE = re.compile(r"@[\w@#$]*")
_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")


def tokenize(sql: str) -> list[Token]:
    """Cut a text into tokens; the last one is the ``"end"``.

    Raises
    ------
    SqlError
        105 (string or name without end), 113 (comment without end), 103 (name too long), 1038 (empty name).
    """
    tokens = []
    place = 0
    while place < len(sql):
        if match := _SPACE.match(sql, place) or _LINE_COMMENT.match(sql, place):
            place = match.end()
        elif sql.startswith("/*", place):
            place = _end_of_comment(sql, place)
        else:
            token = _token(sql, place)
            tokens.append(token)
            place += len(token.text)
    tokens.append(Token("end", "", ""))
    return tokens


def _end_of_comment(sql: str, place: int) -> int:
    """Comments nest."""
    depth = 0
    for match in _COMMENT_MARK.finditer(sql, place):
        depth += 1 if match[0] == "/*" else -1
        if not depth:
            return match.end()
    raise _failure(message(113))


def _token(sql: str, place: int) -> Token:
    first = sql[place]
    if first == "'":
        return _delimited(sql, place, place + 1, "'", "string")
    if first in "Nn" and sql.startswith("'", place + 1):
        return _delimited(sql, place, place + 2, "'", "string")
    if first in '["':
        token = _delimited(sql, place, place + 1, "]" if first == "[" else '"', "name")
        if not token.value:
            raise _failure(message(1038, state=4))
        return _short(token)
    if match := _WORD.match(sql, place):
        return _short(Token("word", match[0], match[0]))
    if match := _VARIABLE.match(sql, place):
        return Token("variable", match[0], match[0])
    if match := _NUMBER.match(sql, place):
        return Token("number", match[0], match[0])
    return Token("symbol", first, first)


def _delimited(sql: str, start: int, content: int, end: str, kind: str) -> Token:
    """A literal that ends with `end`; two of them stand for one."""
    parts: list[str] = []
    place = content
    while True:
        stop = sql.find(end, place)
        if stop < 0:
            raise _failure(message(105, "".join(parts) + sql[place:]))
        parts.append(sql[place:stop])
        if not sql.startswith(end, stop + 1):
            return Token(kind, "".join(parts), sql[start : stop + 1])
        parts.append(end)
        place = stop + 2


def _short(token: Token) -> Token:
    if len(token.value) > MAX_NAME:
        raise _failure(message(103, "identifier", token.value[:MAX_NAME], MAX_NAME, state=4))
    return token


def _failure(problem: Message) -> SqlError:
    return SqlError((problem,))


# ---- statements

_COMMON = ("BLOCKSIZE", "BUFFERCOUNT", "MAXTRANSFERSIZE", "STATS", "CHECKSUM", "NO_CHECKSUM")
_OPTIONS = {"BACKUP": (*_COMMON, "COPY_ONLY", "FORMAT"), "RESTORE": (*_COMMON, "REPLACE")}
# Options that SQL Server takes and the stand-in cannot honour.
_KNOWN = {
    "BACKUP": {
        "COMPRESSION", "NO_COMPRESSION", "CREDENTIAL", "DESCRIPTION", "DIFFERENTIAL", "ENCRYPTION", "EXPIREDATE",
        "FILE_SNAPSHOT", "INIT", "MEDIADESCRIPTION", "MEDIANAME", "MEDIAPASSWORD", "NAME", "NO_TRUNCATE",
        "NOFORMAT", "NOINIT", "NORECOVERY", "NOREWIND", "NOSKIP", "NOUNLOAD", "PASSWORD", "RESTART", "RETAINDAYS",
        "REWIND", "SKIP", "SNAPSHOT", "STANDBY", "STOP_ON_ERROR", "CONTINUE_AFTER_ERROR", "UNLOAD", "METADATA_ONLY",
    },
    "RESTORE": {
        "CONTINUE_AFTER_ERROR", "CREDENTIAL", "ENABLE_BROKER", "ERROR_BROKER_CONVERSATIONS", "FILE", "FILELISTONLY",
        "FILESTREAM", "KEEP_CDC", "KEEP_REPLICATION", "KEEP_TEMPORAL_RETENTION", "LOADHISTORY", "MEDIANAME",
        "MEDIAPASSWORD", "METADATA_ONLY", "MOVE", "NEW_BROKER", "NORECOVERY", "NOREWIND", "NOUNLOAD", "PARTIAL",
        "PASSWORD", "RECOVERY", "RESTART", "RESTRICTED_USER", "REWIND", "SNAPSHOT", "STANDBY", "STOPAT",
        "STOPATMARK", "STOPBEFOREMARK", "STOP_ON_ERROR", "UNLOAD",
    },
}  # fmt: skip


def parse(sql: str) -> Statement:
    """Parse one statement.

    Raises
    ------
    SqlError
        With the number and text that SQL Server gives.
    """
    return _Parser(tokenize(sql)).statement()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._place = 0

    # ---- moving on

    @property
    def _token(self) -> Token:
        return self._tokens[self._place]

    def _is(self, word: str) -> bool:
        """Whether here stands this word or symbol."""
        token = self._token
        return token.kind in ("word", "symbol") and token.value.upper() == word

    def _take(self, word: str) -> bool:
        if not self._is(word):
            return False
        self._place += 1
        return True

    def _expect(self, word: str) -> None:
        if not self._take(word):
            self._syntax()

    def _value(self, *kinds: str) -> Token:
        token = self._token
        if token.kind not in kinds:
            self._syntax()
        self._place += 1
        return token

    def _syntax(self) -> NoReturn:
        """Incorrect syntax near the token here; at the end, near the last one."""
        token = self._token
        if token.kind == "variable":
            raise _failure(message(137, token.value, state=2))
        if token.kind == "end" and self._place:
            token = self._tokens[self._place - 1]
        raise _failure(message(102, token.value if token.kind in ("name", "string") else token.text))

    # ---- the grammar

    def statement(self) -> Statement:
        while self._take(";"):
            pass
        verb = self._token.value.upper() if self._token.kind == "word" else ""
        if verb not in _OPTIONS:
            self._syntax()
        self._place += 1
        self._object(verb)
        database = self._value("word", "name").value
        self._expect("TO" if verb == "BACKUP" else "FROM")
        devices = [self._device(verb)]
        while self._take(","):
            devices.append(self._device(verb))
        if len(devices) > MAX_DEVICES:
            raise _failure(message(3205, MAX_DEVICES, state=2))
        if len(set(devices)) < len(devices):
            # The interface wants names that are unique within the set (section 4.4).
            raise _failure(message(3261))
        options = self._options(verb) if self._take("WITH") else {}
        while self._take(";"):
            pass
        if self._token.kind != "end":
            self._syntax()
        return Statement(verb, database, tuple(devices), **options)  # type: ignore[arg-type]

    def _object(self, verb: str) -> None:
        if self._take("DATABASE"):
            return
        for word in ("LOG", "CERTIFICATE", "MASTER", "SERVICE", "GROUP", "SYMMETRIC",
                     "HEADERONLY", "FILELISTONLY", "LABELONLY", "VERIFYONLY", "REWINDONLY"):  # fmt: skip
            if self._is(word):
                raise _failure(message(3015, f"{verb} {word}"))
        self._syntax()

    def _device(self, verb: str) -> str:
        for word in ("DISK", "TAPE", "URL"):
            if self._is(word):
                raise _failure(message(3015, f"{verb} with a {word} device"))
        self._expect("VIRTUAL_DEVICE")
        self._expect("=")
        name = self._value("string").value
        if not name:
            raise _failure(message(3044))
        if len(name) > MAX_NAME:
            raise _failure(message(3057, MAX_NAME))
        return name

    def _options(self, verb: str) -> dict[str, object]:
        options: dict[str, object] = {}
        while True:
            word = self._value("word").value
            upper = word.upper()
            if upper in _KNOWN[verb]:
                raise _failure(message(3032, word.lower()))
            if upper not in _OPTIONS[verb]:
                raise _failure(message(155, word, verb))
            key, value = self._option(upper)
            if key in options:
                raise _failure(message(3031, word.lower(), "no_checksum" if value is True and key == "checksum"
                                       else "checksum" if key == "checksum" else word.lower()))  # fmt: skip
            options[key] = value
            if not self._take(","):
                return options

    def _option(self, word: str) -> tuple[str, object]:
        if word in ("CHECKSUM", "NO_CHECKSUM"):
            return "checksum", word == "CHECKSUM"
        if word in ("COPY_ONLY", "FORMAT", "REPLACE"):
            return word.lower(), True
        if word == "STATS" and not self._is("="):
            return "stats", 10
        self._expect("=")
        value = self._number(word)
        if word == "BLOCKSIZE":
            if value & (value - 1):
                raise _failure(message(3253))
            return "block_size", _between(value, 512, 65536, word)
        if word == "BUFFERCOUNT":
            return "buffer_count", _between(value, 1, 0x7FFFFFFF, word)
        if word == "MAXTRANSFERSIZE":
            if _between(value, 1, MAX_TRANSFER_SIZE, word) % 65536:
                raise _failure(message(3217, word))
            return "max_transfer_size", value
        return "stats", _between(value, 1, 100, word)

    def _number(self, word: str) -> int:
        token = self._token
        if token.kind != "number" or not token.text.isdecimal() or not token.text.isascii():
            self._syntax()
        self._place += 1
        if len(token.text) > 10:  # beyond any limit, and not worth converting
            raise _failure(message(3250, token.text, word))
        return int(token.text)


def _between(value: int, least: int, most: int, word: str) -> int:
    if not least <= value <= most:
        raise _failure(message(3250, value, word))
    return value
