"""T-SQL's tokens, and the errors that name them."""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from ..messages import SqlError, message

MAX_NAME = 128
MAX_DIGITS = 38  # of a number that SQL Server knows


class Token(NamedTuple):
    """A piece of the text.

    Parameters
    ----------
    kind : str
        ``"word"``, ``"name"`` (delimited), ``"string"``, ``"variable"``, ``"number"``, ``"binary"``, ``"symbol"`` or
        ``"end"``.
    value : str
        Without delimiters.
    text : str
        As written.
    line : int
        Of the text, from 1.
    """

    kind: str
    value: str
    text: str
    line: int = 1


# Words that name nothing unless they are delimited.
KEYWORDS = frozenset("""
    ADD ALL ALTER AND ANY AS ASC AUTHORIZATION BACKUP BEGIN BETWEEN BREAK BROWSE BULK BY CASCADE CASE CHECK CHECKPOINT
    CLOSE CLUSTERED COALESCE COLLATE COLUMN COMMIT COMPUTE CONSTRAINT CONTAINS CONTAINSTABLE CONTINUE CONVERT CREATE
    CROSS CURRENT CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER CURSOR DATABASE DBCC DEALLOCATE DECLARE
    DEFAULT DELETE DENY DESC DISK DISTINCT DISTRIBUTED DOUBLE DROP DUMP ELSE END ERRLVL ESCAPE EXCEPT EXEC EXECUTE
    EXISTS EXIT EXTERNAL FETCH FILE FILLFACTOR FOR FOREIGN FREETEXT FREETEXTTABLE FROM FULL FUNCTION GOTO GRANT GROUP
    HAVING HOLDLOCK IDENTITY IDENTITY_INSERT IDENTITYCOL IF IN INDEX INNER INSERT INTERSECT INTO IS JOIN KEY KILL LEFT
    LIKE LINENO LOAD MERGE NATIONAL NOCHECK NONCLUSTERED NOT NULL NULLIF OF OFF OFFSETS ON OPEN OPENDATASOURCE
    OPENQUERY OPENROWSET OPENXML OPTION OR ORDER OUTER OVER PERCENT PIVOT PLAN PRECISION PRIMARY PRINT PROC PROCEDURE
    PUBLIC RAISERROR READ READTEXT RECONFIGURE REFERENCES REPLICATION RESTORE RESTRICT RETURN REVERT REVOKE RIGHT
    ROLLBACK ROWCOUNT ROWGUIDCOL RULE SAVE SCHEMA SECURITYAUDIT SELECT SEMANTICKEYPHRASETABLE
    SEMANTICSIMILARITYDETAILSTABLE SEMANTICSIMILARITYTABLE SESSION_USER SET SETUSER SHUTDOWN SOME STATISTICS
    SYSTEM_USER TABLE TABLESAMPLE TEXTSIZE THEN TO TOP TRAN TRANSACTION TRIGGER TRUNCATE TRY_CONVERT TSEQUAL UNION
    UNIQUE UNPIVOT UPDATE UPDATETEXT USE USER VALUES VARYING VIEW WAITFOR WHEN WHERE WHILE WITH WITHIN WRITETEXT
""".split())

_SPACE = re.compile(r"[\s\ufeff]+")
_LINE_COMMENT = re.compile(r"--[^\n]*")
_COMMENT_MARK = re.compile(r"/\*|\*/")
_WORD = re.compile(r"[^\W\d][\w@#$]*|#[\w@#$]*")
_VARIABLE = re.compile(r"@[\w@#$]*")
_BINARY = re.compile(r"0[xX][0-9a-fA-F]*")
_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DIGITS = re.compile(r"\d+")  # of other scripts too, which are refused where a number is wanted
_SYMBOL = re.compile(r"<>|<=|>=|!=|!<|!>|\+=|-=|\*=|/=|::|.", re.DOTALL)


def tokenize(sql: str) -> list[Token]:
    """Cut a text into tokens; the last one is the ``"end"``.

    Raises
    ------
    SqlError
        105 (string or name without end), 113 (comment without end), 103 (name too long), 1038 (empty name).
    """
    tokens = []
    place, line, counted = 0, 1, 0
    while place < len(sql):
        if match := _SPACE.match(sql, place) or _LINE_COMMENT.match(sql, place):
            place = match.end()
            continue
        line, counted = line + sql.count("\n", counted, place), place
        if sql.startswith("/*", place):
            place = _end_of_comment(sql, place, line)
        else:
            token = _token(sql, place, line)
            tokens.append(token)
            place += len(token.text)
    tokens.append(Token("end", "", "", tokens[-1].line if tokens else 1))
    return tokens


def _end_of_comment(sql: str, place: int, line: int) -> int:
    """Comments nest."""
    depth = 0
    for match in _COMMENT_MARK.finditer(sql, place):
        depth += 1 if match[0] == "/*" else -1
        if not depth:
            return match.end()
    fail(113, line=line)


def _token(sql: str, place: int, line: int) -> Token:
    first = sql[place]
    if first == "'":
        return _delimited(sql, place, place + 1, "'", "string", line)
    if first in "Nn" and sql.startswith("'", place + 1):
        return _delimited(sql, place, place + 2, "'", "string", line)
    if first in '["':
        token = _delimited(sql, place, place + 1, "]" if first == "[" else '"', "name", line)
        if not token.value:
            fail(1038, state=4, line=line)
        return _short(token)
    for kind, pattern in (("word", _WORD), ("variable", _VARIABLE)):
        if match := pattern.match(sql, place):
            return _short(Token(kind, match[0], match[0], line))
    for kind, pattern in (("binary", _BINARY), ("number", _NUMBER), ("number", _DIGITS), ("symbol", _SYMBOL)):
        if match := pattern.match(sql, place):
            return Token(kind, match[0], match[0], line)
    raise AssertionError("the last pattern matches everything")


def _delimited(sql: str, start: int, content: int, end: str, kind: str, line: int) -> Token:
    """A literal that ends with `end`; two of them stand for one."""
    parts: list[str] = []
    place = content
    while True:
        stop = sql.find(end, place)
        if stop < 0:
            fail(105, "".join(parts) + sql[place:], line=line)
        parts.append(sql[place:stop])
        if not sql.startswith(end, stop + 1):
            return Token(kind, "".join(parts), sql[start : stop + 1], line)
        parts.append(end)
        place = stop + 2


def _short(token: Token) -> Token:
    if len(token.value) > MAX_NAME:
        fail(103, "identifier", token.value[:MAX_NAME], MAX_NAME, state=4, line=token.line)
    return token


def quote_name(name: str) -> str:
    """A name in brackets."""
    return f"[{name.replace(']', ']]')}]"


def quote_string(text: str) -> str:
    """A Unicode string literal."""
    return f"N'{text.replace(chr(39), chr(39) * 2)}'"


def fail(number: int, *values: object, state: int = 1, line: int = 1) -> NoReturn:
    """Raise a message of the catalogue as the statement's only one."""
    raise SqlError((message(number, *values, state=state, line=line),))


class Cursor:
    """A place in a list of tokens."""

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens = tokens
        self.place = 0

    @property
    def token(self) -> Token:
        return self.tokens[self.place]

    def peek(self, ahead: int = 1) -> Token:
        return self.tokens[min(self.place + ahead, len(self.tokens) - 1)]

    def next(self) -> Token:
        token = self.token
        if token.kind != "end":
            self.place += 1
        return token

    def at(self, *words: str) -> bool:
        """Whether here stands one of these words (in capitals) or symbols."""
        token = self.token
        return token.kind in ("word", "symbol") and token.value.upper() in words

    def take(self, *words: str) -> bool:
        if not self.at(*words):
            return False
        self.place += 1
        return True

    def expect(self, *words: str) -> None:
        if not self.take(*words):
            self.syntax()

    def value(self, *kinds: str) -> Token:
        """A token of one of these kinds; a word must not be a keyword."""
        token = self.token
        if token.kind not in kinds or is_keyword(token):
            self.syntax()
        self.place += 1
        return token

    def syntax(self) -> NoReturn:
        """Incorrect syntax near the token here; at the end, near the last one."""
        token = self.token
        if token.kind == "end" and self.place:
            token = self.tokens[self.place - 1]
        elif is_keyword(token):
            fail(319 if token.value.upper() == "WITH" else 156, token.value, line=token.line)
        fail(102, token.value if token.kind in ("name", "string") else token.text, line=token.line)


def is_keyword(token: Token) -> bool:
    return token.kind == "word" and token.value.upper() in KEYWORDS
