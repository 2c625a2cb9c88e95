"""The names of types, as DECLARE and CAST write them."""

from __future__ import annotations

from ..types import SqlType
from .tokens import Cursor, fail

_PLAIN = frozenset("""
    bigint bit date datetime int money real smalldatetime smallint smallmoney tinyint uniqueidentifier
""".split())
_STRINGS = {"char": 8000, "varchar": 8000, "nchar": 4000, "nvarchar": 4000, "binary": 8000, "varbinary": 8000}
_OTHER_NAMES = {"integer": "int", "dec": "numeric", "decimal": "numeric", "character": "char"}
_WITHOUT_SIZE = {"text": "varchar", "ntext": "nvarchar", "image": "varbinary", "xml": "nvarchar"}
_SCALED = {"datetime2": 7, "datetimeoffset": 7, "time": 7}


def parse_type(cursor: Cursor, size: int = 1) -> SqlType:
    """The type that is named here; `size` is that of a string of which none is given.

    Raises
    ------
    SqlError
        243 (no such type), 1001 (a size that is none), 102 and the like.
    """
    if cursor.take("SYS"):
        cursor.expect(".")
    token = cursor.token
    if token.kind not in ("word", "name"):
        cursor.syntax()
    cursor.next()
    name = token.value.lower()
    name = _OTHER_NAMES.get(name, name)
    if name in _PLAIN:
        return SqlType(name)
    if name == "sysname":
        return SqlType("sysname", 128)
    if name == "sql_variant":
        return SqlType("nvarchar", 4000)
    if name in _WITHOUT_SIZE:
        return SqlType(_WITHOUT_SIZE[name])
    if name in _STRINGS:
        if not cursor.take("("):
            return SqlType(name, size)
        if cursor.take("MAX"):
            cursor.expect(")")
            return SqlType(name)
        given = _number(cursor, _STRINGS[name], token.line)
        cursor.expect(")")
        if not given:
            fail(1001, token.line, 0, line=token.line)
        return SqlType(name, given)
    if name in _SCALED:
        scale = _SCALED[name]
        if cursor.take("("):
            scale = _number(cursor, 7, token.line)
            cursor.expect(")")
        return SqlType(name, scale=scale)
    if name == "float":
        if cursor.take("("):
            name = "real" if _number(cursor, 53, token.line) <= 24 else "float"
            cursor.expect(")")
        return SqlType(name)
    if name == "numeric":
        precision, scale = 18, 0
        if cursor.take("("):
            precision = _number(cursor, 38, token.line)
            if cursor.take(","):
                scale = _number(cursor, precision, token.line)
            cursor.expect(")")
        if not precision:
            fail(1001, token.line, 0, line=token.line)
        return SqlType("numeric", precision=precision, scale=scale)
    fail(243, token.value, line=token.line)


def _number(cursor: Cursor, most: int, line: int) -> int:
    token = cursor.value("number")
    if not token.text.isdecimal() or not token.text.isascii() or len(token.text) > 10:
        cursor.place -= 1
        cursor.syntax()
    if int(token.text) > most:
        fail(1001, line, token.text, line=line)
    return int(token.text)
